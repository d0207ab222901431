"""The same POST twice is the first answer twice, also when both come at once, on SQLite and on PostgreSQL."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from app.db.tables import IdempotencyKey, Job, utc_now
from app.services.idempotency import KEPT
from tests.app.api.house import Document, House


def merge(house: House) -> Document:
    return {"method": "average", "models": [{"checkpoint": "model-0"}, {"checkpoint": "model-1"}], "force": True}


def n_jobs(house: House) -> int:
    with house.wiring.sessions.read() as session:
        return session.scalar(select(func.count()).select_from(Job).where(Job.kind == "merge")) or 0


def test_the_same_key_and_body_give_the_first_answer(any_house: House) -> None:
    house = any_house
    house.family()

    first = house.post("/v1/merges", merge(house), headers={"Idempotency-Key": "k"})
    second = house.post("/v1/merges", merge(house), headers={"Idempotency-Key": "k"})

    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["location"] == first.headers["location"]
    assert (second.status_code, second.json()) == (first.status_code, first.json())
    assert n_jobs(house) == 1


def test_a_replay_is_the_first_answer_whatever_happened_since(house: House) -> None:
    house.family()
    first = house.post("/v1/merges", merge(house), headers={"Idempotency-Key": "k"})
    house.work()

    second = house.post("/v1/merges", merge(house), headers={"Idempotency-Key": "k"})

    assert second.json() == first.json()
    assert second.json()["state"] == "queued"


def test_the_order_of_fields_does_not_matter(house: House) -> None:
    house.family()
    house.post("/v1/merges", merge(house), headers={"Idempotency-Key": "k"})

    turned = dict(reversed(merge(house).items()))

    assert house.post("/v1/merges", turned, headers={"Idempotency-Key": "k"}).headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize(("path", "change"), [("/v1/merges", {"seed": 1}), ("/v1/merges", {"priority": 1})])
def test_the_same_key_with_another_body_is_a_conflict(any_house: House, path: str, change: Document) -> None:
    house = any_house
    house.family()
    house.post("/v1/merges", merge(house), headers={"Idempotency-Key": "k"})

    response = house.post(path, {**merge(house), **change}, headers={"Idempotency-Key": "k"})

    assert (response.status_code, response.json()["code"]) == (409, "idempotency_key_reused")
    assert n_jobs(house) == 1


def test_the_same_key_for_another_path_is_a_conflict(house: House) -> None:
    house.family()
    house.post("/v1/merges", merge(house), headers={"Idempotency-Key": "k"})

    response = house.post("/v1/tasks", house.task_body(), headers={"Idempotency-Key": "k"})

    assert (response.status_code, response.json()["code"]) == (409, "idempotency_key_reused")


def test_a_refused_request_leaves_the_key_free(house: House) -> None:
    house.family()
    refused = house.post("/v1/merges", {**merge(house), "method": "tise"}, headers={"Idempotency-Key": "k"})

    accepted = house.post("/v1/merges", merge(house), headers={"Idempotency-Key": "k"})

    assert (refused.status_code, accepted.status_code) == (422, 202)


def test_many_at_once_are_one(any_house: House) -> None:
    house = any_house
    house.family()

    def send(_: int) -> Document:
        response = house.post("/v1/merges", merge(house), headers={"Idempotency-Key": "k"})
        assert response.status_code == 202, response.text
        document: Document = response.json()
        return document

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(16)))

    assert len({answer["id"] for answer in answers}) == 1
    assert n_jobs(house) == 1


def test_every_creating_post_is_replayed(house: House) -> None:
    house.bert()
    house.made("/v1/tasks", house.task_body())
    begun = house.made("/v1/checkpoints", {"uri": (house.data / "bert").as_uri(), "name": "again"})
    job = f"/v1/jobs/{begun['job']['id']}"
    for path, body in (
        ("/v1/checkpoints", {"uri": (house.data / "bert").as_uri(), "name": "bert"}),
        ("/v1/checkpoints/uploads", {"name": "sent"}),
        ("/v1/tasks", house.task_body("second")),
        ("/v1/tasks", house.task_body("kind")),  # 200: it is there
        ("/v1/merges", {"method": "average", "models": [{"checkpoint": "bert"}]}),
        ("/v1/evaluations", {"checkpoint": "bert", "tasks": ["kind"]}),
        ("/v1/finetunes", {"base_model": "bert", "task": "kind"}),
        ("/v1/analyses", {"kind": "task_vector_cosines", "base_model": "bert", "models": ["bert"]}),
        (
            "/v1/sweeps",
            {
                "merge": {"method": "average", "models": [{"checkpoint": "bert"}], "evaluate": ["kind"]},
                "grid": {"models.0.weight": [0.5, 1.0]},
            },
        ),
        (f"{job}/cancel", None),
        (f"{job}/retry", None),
    ):
        key = f"{path}-{body}"[:255].replace(" ", "")
        first = house.post(path, body, headers={"Idempotency-Key": key})
        second = house.post(path, body, headers={"Idempotency-Key": key})

        assert first.status_code in (200, 201, 202), first.text
        assert second.headers.get("idempotent-replayed") == "true", path
        assert (second.status_code, second.json()) == (first.status_code, first.json()), path
        assert second.headers.get("location") == first.headers.get("location"), path


def test_a_task_is_replayed_even_when_its_files_are_gone(house: House) -> None:
    body = house.task_body()
    first = house.post("/v1/tasks", body, headers={"Idempotency-Key": "k"})
    shutil.rmtree(house.data / "task-kind")

    second = house.post("/v1/tasks", body, headers={"Idempotency-Key": "k"})

    assert (second.status_code, second.json()) == (201, first.json())


def test_a_key_has_no_effect_where_nothing_is_stored(house: House) -> None:
    house.family()
    for path, first, second in (
        ("/v1/plans", merge(house), {**merge(house), "seed": 1}),
        ("/v1/checkpoints/compatibility", {"models": ["model-0"]}, {"models": ["model-1"]}),
    ):
        answers = [house.post(path, body, headers={"Idempotency-Key": "k"}) for body in (first, first, second)]
        assert [answer.status_code for answer in answers] == [200, 200, 200], [answer.text for answer in answers]
        assert not any("idempotent-replayed" in answer.headers for answer in answers)
        documented = house.app.openapi()["paths"][path]["post"]["responses"]["409"]["content"]
        assert list(documented["application/problem+json"]["examples"]) == ["checkpoint_not_ready"]


@pytest.mark.parametrize("path", ["/v1/merges", "/v1/plans", "/v1/checkpoints/compatibility"])
@pytest.mark.parametrize("key", ["x" * 256, "a b"])
def test_a_key_has_a_form(house: House, key: str, path: str) -> None:
    response = house.post(path, merge(house), headers={"Idempotency-Key": key})

    assert (response.status_code, response.json()["code"]) == (422, "validation_failed")
    assert "/header/idempotency-key" in [fault["pointer"] for fault in response.json()["errors"]]


def test_a_key_is_kept_a_day_at_least_and_free_again_after_its_time(any_house: House) -> None:
    house = any_house
    house.family()
    first = house.post("/v1/merges", merge(house), headers={"Idempotency-Key": "k"})
    assert timedelta(hours=24) <= KEPT
    with house.wiring.sessions.begin() as session:
        session.execute(update(IdempotencyKey).values(expires_at=utc_now() - timedelta(seconds=1)))

    second = house.post("/v1/merges", {**merge(house), "seed": 1}, headers={"Idempotency-Key": "k"})

    assert second.status_code == 202
    assert second.json()["id"] != first.json()["id"]
