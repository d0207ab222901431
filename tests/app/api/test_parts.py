"""Merges in parts over HTTP: how they are asked for and refused, what is seen of them, and how they end."""

from typing import Any

import numpy as np
import pytest
from sqlalchemy import update

from app.db.tables import Job
from app.domain.jobs import ResourceClass
from app.services import freeing, parts, presence, reaping, running
from app.services.presence import WorkerFacts
from app.services.running import WorkerIdentity
from tests.app.api.house import Document, House, draw

LAYERS = {f"layers.{index}.weight": (400, 700) for index in range(4)}  # 1.12 MB each: one to a file
FILES = [f"model-{index:05d}-of-00004.safetensors" for index in range(1, 5)]


def register_family(house: House, *, spoiled: bool = False) -> None:
    """Register `base`, `model-0` and `model-1`, of four layers; the last layer of a spoiled one is not finite."""
    for seed, name in enumerate(("base", "model-0", "model-1")):
        tensors = draw(seed, LAYERS)
        if spoiled and name == "model-1":
            tensors["layers.3.weight"][7, 7] = np.nan
        house.register(name, tensors)


def ties(**fields: Any) -> Document:
    output = {"shard_bytes": 2**20, **fields.pop("output", {})}
    models = [{"checkpoint": "model-0"}, {"checkpoint": "model-1"}]
    return {"method": "ties", "base_model": "base", "models": models, "output": output, **fields}


def parts_of(house: House, job: Document) -> list[Document]:
    found: list[Document] = house.read("/v1/jobs", params={"parent": job["id"], "kind": "part", "order": "created_at"})[
        "items"
    ]
    return found


def files_of(house: House, job: Document) -> dict[str, str]:
    artifact = house.read(f"/v1/artifacts/{job['result']['artifacts'][0]}")
    return {file["path"]: file["sha256"] for file in artifact["files"]}


def run_next(house: House) -> str:
    """Run one attempt of the next job, tell its merge, and return its kind."""
    claim = house.claim()
    assert claim is not None
    house.run(claim)
    if claim.job.parent is not None:
        parts.settle(house.wiring.sessions, house.wiring.queue, claim.job.parent)
    return str(claim.job.kind)


def objects(house: House) -> set[str]:
    return {sha256 for sha256, _ in house.wiring.storage.list_objects()}


def sweep(house: House) -> None:
    freeing.sweep(house.wiring.sessions, house.wiring.storage, grace_seconds=0.0)


def test_the_files_are_those_of_the_whole_merge(any_house: House) -> None:
    register_family(any_house)
    whole = any_house.finish("/v1/merges", ties(parallelism=1, output={"name": "whole"}))
    split = any_house.finish("/v1/merges", ties(parallelism=3, force=True, evaluate=[], output={"name": "split"}))
    assert split["state"] == "succeeded", split["problem"]
    assert set(FILES) < set(files_of(any_house, split))
    assert files_of(any_house, split) == files_of(any_house, whole)
    digests = [any_house.read(f"/v1/checkpoints/{name}")["content_digest"] for name in ("whole", "split")]
    assert digests[0] == digests[1]
    assert split["recipe_digest"] == whole["recipe_digest"]
    assert split["result"]["data"] == {**whole["result"]["data"], "n_parts": 3}
    assert (split["attempts"], split["children"]) == (1, [])
    assert split["parts"]["total"] == split["parts"]["succeeded"] == 9  # boundaries, majority and merge, of 3 parts


def test_a_merge_in_parts_shows_how_far_they_are(house: House) -> None:
    register_family(house)
    job = house.made("/v1/merges", ties(method="task_arithmetic", parallelism=4, priority=3))
    assert job["parts"] is None
    assert run_next(house) == "merge"
    job = house.read(f"/v1/jobs/{job['id']}")
    assert (job["state"], job["attempts"], job["worker"]) == ("running", 0, None)
    assert (job["parts"]["total"], job["parts"]["queued"]) == (4, 4)
    assert {part["priority"] for part in parts_of(house, job)} == {3}
    assert run_next(house) == "part"
    job = house.read(f"/v1/jobs/{job['id']}")
    assert (job["parts"]["queued"], job["parts"]["succeeded"]) == (3, 1)
    n_bytes = 3 * 4 * 400 * 700 * 4  # of base and two models
    assert (job["progress"]["done"], job["progress"]["total"]) == (n_bytes / 4, n_bytes)
    assert [run_next(house) for _ in range(4)] == ["part", "part", "part", "merge"]
    job = house.read(f"/v1/jobs/{job['id']}")
    assert job["state"] == "succeeded"
    kinds = [event["type"] for event in house.read(f"/v1/jobs/{job['id']}/events")["items"]]
    assert kinds.count("job.progress") == 4
    assert [one for one in kinds if one != "job.progress"] == [
        "job.queued", "job.started", "job.split", "job.queued", "job.started", "job.succeeded",
    ]  # fmt: skip


def test_parts_are_listed_where_they_are_asked_for(house: House) -> None:
    register_family(house)
    job = house.finish("/v1/merges", ties(method="task_arithmetic", parallelism=2))
    assert "part" not in {one["kind"] for one in house.read("/v1/jobs")["items"]}
    assert len(parts_of(house, job)) == len(house.read("/v1/jobs", params={"kind": "part"})["items"]) == 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"parallelism": 5}, "/parallelism: found 5, expected at most 4: a part writes whole weight files"),
        ({"parallelism": 2, "output": {}}, "/parallelism: found 2, expected at most 1"),
        (
            {"parallelism": 2, "method": "emr"},
            "emr writes patches of all tensors beside the weights; leave parallelism",
        ),
        (
            {"parallelism": 2, "method": "localize_and_stitch_dataless"},
            "localize_and_stitch_dataless keeps sums of all tensors beside the weights",
        ),
        ({"parallelism": 0}, "greater than or equal to 1"),
        ({"parallelism": "many"}, "auto"),
    ],
)
def test_what_cannot_be_split_is_refused(house: House, asked: Document, message: str) -> None:
    register_family(house)
    body = ties(**asked) if "output" not in asked else {**ties(), **asked}
    response = house.post("/v1/merges", body)
    assert response.status_code == 422
    assert message in response.text
    assert house.read("/v1/jobs", params={"kind": "merge"})["items"] == []


def test_a_sweep_is_not_split(house: House) -> None:
    register_family(house)
    sweep_of = {"merge": ties(parallelism=2), "grid": {"density": [0.1, 0.2]}, "select_on": {"tasks": ["any"]}}
    response = house.post("/v1/sweeps", sweep_of)
    assert response.status_code == 422
    assert "/merge/parallelism: found 2, expected 1" in response.text


def add_worker(house: House, name: str, machine: str, *, serves: ResourceClass = ResourceClass.CPU) -> None:
    facts = WorkerFacts(f"wrk_{name}", name, (serves,), "cpu", 2, "0", machine=machine, cores=2, threads=0)
    presence.register(house.wiring.sessions, facts)


def test_auto_splits_what_is_large_where_several_machines_are_there(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_family(house)
    add_worker(house, "one", "a")
    assert house.made("/v1/plans", ties())["n_parts"] == 1
    monkeypatch.setattr("app.domain.parts.WORTH_SECONDS", 0.0)
    add_worker(house, "two", "a")
    add_worker(house, "gpu", "b", serves=ResourceClass.GPU)
    assert house.made("/v1/plans", ties())["n_parts"] == 1  # four slots, of one machine
    add_worker(house, "three", "c")
    assert house.made("/v1/plans", ties())["n_parts"] == 4
    assert house.made("/v1/plans", ties(method="emr"))["n_parts"] == 1
    presence.leave(house.wiring.sessions, "wrk_three")
    assert house.made("/v1/plans", ties())["n_parts"] == 1


def test_auto_leaves_a_merge_whole_where_others_run_or_wait(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    register_family(house)
    monkeypatch.setattr("app.domain.parts.WORTH_SECONDS", 0.0)
    for name in ("one", "two"):
        add_worker(house, name, machine=name)
    first = house.made("/v1/merges", ties(parallelism=1))
    assert house.made("/v1/plans", ties(method="task_arithmetic"))["n_parts"] == 1  # it goes before
    held = running.claim(house.wiring.sessions, WorkerIdentity("wrk_one", "one", (ResourceClass.CPU,)), lease_seconds=9)
    assert held is not None
    assert held.job.id == first["id"]
    assert house.made("/v1/plans", ties(method="task_arithmetic"))["n_parts"] == 1  # one machine is busy
    running.release(house.wiring.sessions, held, "test")
    house.work()
    assert house.made("/v1/plans", ties(method="task_arithmetic"))["n_parts"] == 4


def test_as_many_parts_tally_as_machines_are_there(house: House) -> None:
    register_family(house)
    whole = house.finish("/v1/merges", ties(parallelism=1))
    for name in ("one", "two"):
        add_worker(house, name, machine=name)
    split = house.finish("/v1/merges", ties(parallelism=3, force=True))
    assert files_of(house, split) == files_of(house, whole)
    assert split["parts"]["total"] == split["parts"]["succeeded"] == 2 + 2 + 3  # boundaries, majority, merge
    assert split["result"]["data"]["n_parts"] == 3


def test_a_plan_says_what_cannot_be_split(house: House) -> None:
    register_family(house)
    plan = house.made("/v1/plans", ties(parallelism=5))
    assert (plan["is_runnable"], plan["problems"][0]["errors"][0]["pointer"]) == (False, "/parallelism")


def test_a_part_that_fails_for_good_fails_the_merge_and_nothing_is_left(any_house: House) -> None:
    register_family(any_house, spoiled=True)
    before = objects(any_house)
    job = any_house.finish("/v1/merges", ties(method="task_arithmetic", parallelism=4, output={"name": "spoiled"}))
    assert job["state"] == "failed"
    assert job["problem"]["code"] == "not_finite"
    assert "layers.3.weight" in job["problem"]["detail"]
    states = [part["state"] for part in parts_of(any_house, job)]
    assert states == ["succeeded", "succeeded", "succeeded", "failed"]
    assert job["parts"]["failed"] == 1
    assert len(objects(any_house)) > len(before)
    sweep(any_house)
    assert objects(any_house) == before
    assert any_house.get("/v1/checkpoints/spoiled").status_code == 404


def test_other_parts_are_canceled_where_one_fails(house: House) -> None:
    register_family(house, spoiled=True)
    job = house.made("/v1/merges", ties(parallelism=2, max_attempts=1))
    run_next(house)
    first, second = house.claim(), house.claim()
    assert first is not None
    assert second is not None
    house.run(second)  # it tallies the layer that is not finite
    parts.settle(house.wiring.sessions, house.wiring.queue, job["id"])
    assert house.read(f"/v1/jobs/{job['id']}")["state"] == "failed"
    heard = running.heartbeat(house.wiring.sessions, first)
    assert heard.cancel_requested
    running.confirm_canceled(house.wiring.sessions, first)
    assert [part["state"] for part in parts_of(house, job)] == ["canceled", "failed"]


def test_canceling_the_merge_cancels_its_parts_at_once(any_house: House) -> None:
    register_family(any_house)
    before = objects(any_house)
    job = any_house.made("/v1/merges", ties(method="task_arithmetic", parallelism=4))
    assert [run_next(any_house), run_next(any_house)] == ["merge", "part"]
    held = any_house.claim()
    assert held is not None
    assert any_house.post(f"/v1/jobs/{held.job.id}/cancel").status_code == 409  # alone it is not
    answer = any_house.post(f"/v1/jobs/{job['id']}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "canceled")
    states = [part["state"] for part in parts_of(any_house, job)]
    assert states == ["succeeded", "canceling", "canceled", "canceled"]
    any_house.run(held)  # it ends before it hears of it
    parts.settle(any_house.wiring.sessions, any_house.wiring.queue, job["id"])
    assert any_house.claim() is None
    assert any_house.read(f"/v1/jobs/{job['id']}")["state"] == "canceled"
    sweep(any_house)
    assert objects(any_house) == before


def test_a_cancel_that_comes_while_the_merge_is_split_is_not_lost(house: House) -> None:
    register_family(house)
    job = house.made("/v1/merges", ties(parallelism=2))
    claim = house.claim()
    assert claim is not None
    assert house.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "canceling"
    house.run(claim)
    ended = house.read(f"/v1/jobs/{job['id']}")
    assert (ended["state"], ended["parts"]) == ("canceled", None)


def test_a_lost_part_is_run_again_alone(any_house: House) -> None:
    register_family(any_house)
    job = any_house.made("/v1/merges", ties(method="task_arithmetic", parallelism=2))
    run_next(any_house)
    lost = running.claim(any_house.wiring.sessions, any_house.worker, lease_seconds=-1.0)
    assert lost is not None
    assert reaping.lose_expired(any_house.wiring.sessions) == 1
    with any_house.wiring.sessions.begin() as session:
        session.execute(update(Job).values(not_before=None))  # the backoff is over
    any_house.work()
    with pytest.raises(running.ClaimLost):
        any_house.run(lost)  # it wakes, and may write nothing
    ended = any_house.read(f"/v1/jobs/{job['id']}")
    assert ended["state"] == "succeeded", ended["problem"]
    assert ended["attempts"] == 1
    assert [part["attempts"] for part in parts_of(any_house, job)] == [2, 1]


def test_the_reaper_settles_what_nobody_has_told(any_house: House) -> None:
    register_family(any_house)
    job = any_house.made("/v1/merges", ties(parallelism=2))
    for _ in range(20):
        claim = any_house.claim()
        if claim is not None:
            any_house.run(claim)  # and nobody tells its merge
        else:
            parts.settle_all(any_house.wiring.sessions, any_house.wiring.queue)
            parts.settle(any_house.wiring.sessions, any_house.wiring.queue, job["id"])  # twice changes nothing
    ended = any_house.read(f"/v1/jobs/{job['id']}")
    assert ended["state"] == "succeeded", ended["problem"]
    assert ended["parts"]["total"] == 6
    assert ended["attempts"] == 1


def test_files_of_parts_are_kept_while_their_merge_lives(house: House) -> None:
    register_family(house)
    job = house.made("/v1/merges", ties(parallelism=2))
    while house.read(f"/v1/jobs/{job['id']}")["state"] != "succeeded":
        run_next(house)
        sweep(house)
    assert set(files_of(house, house.read(f"/v1/jobs/{job['id']}")).values()) == objects(house)


def test_a_merge_that_is_retried_is_split_anew(house: House) -> None:
    register_family(house)
    job = house.made("/v1/merges", ties(method="task_arithmetic", parallelism=2))
    run_next(house)
    house.post(f"/v1/jobs/{job['id']}/cancel")
    again = house.made(f"/v1/jobs/{job['id']}/retry", None)
    house.work()
    ended = house.read(f"/v1/jobs/{again['id']}")
    assert (ended["state"], ended["parts"]["succeeded"]) == ("succeeded", 2)
    part = parts_of(house, ended)[0]
    refused = house.post(f"/v1/jobs/{part['id']}/retry")
    assert refused.status_code == 409
    assert f"a part of the merge {again['id']}" in refused.json()["detail"]


def test_an_equal_merge_waits_for_one_in_parts(house: House) -> None:
    register_family(house)
    first = house.made("/v1/merges", ties(parallelism=2))
    run_next(house)
    second = house.made("/v1/merges", ties())
    assert second["waits_for"] == first["id"]
    house.work()
    assert house.read(f"/v1/jobs/{second['id']}")["deduplicated_from"] == first["id"]
