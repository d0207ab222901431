"""Localize-and-stitch over HTTP: masks are learned, kept and replayed, and keep the mark of the test split."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.app.api.house import Document, House, open_house

QUICK = {"density": 0.2, "steps": 2, "learning_rate": 50, "sigmoid_bias": 1}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A base and two models with a task each; tests add jobs only."""
    with open_house(tmp_path_factory.mktemp("house")) as house:
        house.bert()
        for seed, name in enumerate(("kind", "other")):
            house.made("/v1/tasks", house.task_body(name))
            house.bert(f"near-{name}", seed=seed + 1, base_checkpoint="bert", task=name)
        yield house


def body(**changes: Any) -> Document:
    models = [{"checkpoint": f"near-{name}"} for name in ("kind", "other")]
    return {"method": "localize_stitch", "base_model": "bert", "models": models, "parameters": QUICK, **changes}


def weights_of(house: House, job: Document) -> str:
    assert job["state"] == "succeeded", job["problem"]
    return str(house.read(f"/v1/checkpoints/{job['result']['checkpoint']}")["weights_digest"])


def test_masks_of_two_merges_replay_as_those_of_one(shared: House) -> None:
    whole = shared.finish("/v1/merges", body(output={"name": "whole"}))
    for name in ("kind", "other"):
        shared.finish("/v1/merges", body(models=[{"checkpoint": f"near-{name}"}], output={"name": f"mask-{name}"}))

    again = shared.finish("/v1/merges", body(statistics=["mask-kind", "mask-other"]))

    assert weights_of(shared, again) == weights_of(shared, whole)
    assert (whole["resource_class"], again["resource_class"]) == ("gpu", "cpu")
    learned = whole["result"]["data"]["learned"]
    assert [one["task"] for one in learned["masks"]] == ["kind", "other"]
    assert all(0 < one["density"] < 1 for one in learned["masks"])
    files = shared.read(f"/v1/artifacts/{whole['result']['artifacts'][0]}")["files"]
    assert len([file for file in files if file["path"].startswith("statistics/mask-")]) == 2


def test_masks_learned_on_test_stay_transductive(shared: House) -> None:
    shared.finish("/v1/merges", body(seed=1, data={"split": "test"}, output={"name": "on-test"}))

    job = shared.finish("/v1/merges", body(seed=1, statistics=["on-test"], evaluate=["kind"]))

    (metric,) = shared.read(f"/v1/metrics?checkpoint={job['result']['checkpoint']}")["items"]
    assert (metric["split"], metric["transductive"]) == ("test", True)


@pytest.mark.parametrize(
    ("changes", "code", "pointer"),
    [
        ({"models": [{"checkpoint": "bert"}]}, "validation_failed", "/models/0/task"),
        ({"data": {"tasks": ["kind", "knd"]}}, "task_not_found", "/data/tasks/1"),
        ({"statistics": ["bert"]}, "validation_failed", "/models/0/checkpoint"),
        ({"parameters": {"density": 0}}, "invalid_parameters", "/parameters/density"),
        ({"parameters": {"sigmoid_bias": 0}}, "invalid_parameters", "/parameters/sigmoid_bias"),
        ({"parameters": {"regularizer": "l2"}}, "invalid_parameters", "/parameters/regularizer"),
        ({"models": [{"checkpoint": "near-kind", "weight": -1}]}, "validation_failed", "/models/0/weight"),
    ],
)
def test_what_cannot_be_learned_is_refused_with_its_place(
    shared: House, changes: Document, code: str, pointer: str
) -> None:
    problem = shared.post("/v1/merges", body(**changes)).json()
    assert (problem["code"], problem["errors"][0]["pointer"]) == (code, pointer), problem


def test_a_task_without_the_split_is_refused_with_what_it_has(shared: House) -> None:
    task = shared.task_body("bare")
    del task["dataset"]["validation"]
    shared.made("/v1/tasks", task)
    problem = shared.post("/v1/merges", body(data={"tasks": ["bare", "other"]})).json()
    assert problem["errors"][0]["pointer"] == "/data/tasks/0"
    assert "has no validation split; it has" in problem["errors"][0]["message"]
