"""Surgery over HTTP: modules are learned, measured with, counted, downloaded and imported, and not materialized."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load

from tests.app.api.house import Document, House, open_house

TASKS = ["kind", "other"]
QUICK = {"steps": 40, "batch_size": 4, "learning_rate": 0.05, "rank": 2}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A base, two models with a task each, and a merge of them by surgery, which has been measured."""
    with open_house(tmp_path_factory.mktemp("house")) as house:
        house.bert()
        for name in TASKS:
            house.made("/v1/tasks", house.task_body(name))
        for seed, name in enumerate(TASKS):
            house.bert(f"near-{name}", seed=seed + 1, base_checkpoint="bert", task=name)
        house.finish("/v1/merges", body(output={"name": "operated"}, evaluate=TASKS))
        yield house


def body(**changes: Any) -> Document:
    models = [{"checkpoint": f"near-{name}"} for name in TASKS]
    return {"method": "surgery", "base_model": "bert", "models": models, "parameters": QUICK, **changes}


def job_of(house: House, kind: str = "merge") -> Document:
    found: Document = house.read(f"/v1/jobs?kind={kind}")["items"][-1]
    return found


def artifact_of(house: House, ref: str = "operated") -> str:
    return str(house.read(f"/v1/checkpoints/{ref}")["artifact"])


def test_each_task_gets_a_module_that_the_result_tells_of(shared: House) -> None:
    job = job_of(shared)
    assert job["state"] == "succeeded", job["problem"]
    learned = job["result"]["data"]["learned"]
    assert (learned["split"], learned["transductive"]) == ("validation", False)
    assert [(one["task"], one["n_modules"], one["n_values"]) for one in learned["modules"]] == [
        ("kind", 1, 32),
        ("other", 1, 32),
    ]
    assert [one["n_values"] for one in job["result"]["data"]["storage"]["patches"]] == [32, 32]


def test_an_evaluation_picks_each_tasks_module_by_itself(shared: House) -> None:
    metrics = shared.read("/v1/metrics?checkpoint=operated")["items"]
    assert sorted(one["task"] for one in metrics) == TASKS
    assert {one["n"] for one in metrics} == {6}


def test_a_patch_is_a_file_of_the_documented_form(shared: House) -> None:
    content = shared.get(f"/v1/artifacts/{artifact_of(shared)}/files/patches/kind.safetensors").content
    parts = load(content)
    assert {name: part.shape for name, part in parts.items()} == {"features::down": (2, 8), "features::up": (8, 2)}
    assert b'"version":"2"' in content.replace(b" ", b"")


def test_a_task_with_modules_is_not_materialized(shared: House) -> None:
    response = shared.post(f"/v1/artifacts/{artifact_of(shared)}/materializations", {"task": "kind"})
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "modules_not_foldable")
    assert problem["errors"][0]["pointer"] == "/task"
    assert "the patch of kind holds surgery modules (features)" in problem["detail"]


def test_without_modules_a_task_is_materialized(shared: House) -> None:
    job = shared.finish("/v1/merges", body(parameters={**QUICK, "rank": 0}, output={"name": "plain"}))
    path = f"/v1/artifacts/{job['result']['artifacts'][0]}/materializations"
    assert shared.finish(path, {"task": "kind"})["state"] == "succeeded"


def test_a_downloaded_artifact_comes_back_and_is_measured_alike(shared: House) -> None:
    with tarfile.open(
        fileobj=io.BytesIO(shared.get(f"/v1/artifacts/{artifact_of(shared)}/archive").content)
    ) as archive:
        archive.extractall(shared.data / "back", filter="data")
    folder = next(path.parent for path in Path(shared.data / "back").rglob("model.safetensors"))
    shared.register_folder("back", folder, base_checkpoint="bert")
    job = shared.finish("/v1/evaluations", {"checkpoint": "back", "tasks": TASKS, "force": True})
    assert job["state"] == "succeeded", job["problem"]
    first = shared.read("/v1/metrics?checkpoint=operated")["items"]
    values = {one["task"]: one["value"] for one in job["result"]["metrics"]}
    assert values == {one["task"]: one["value"] for one in first}


def test_an_equal_merge_is_not_run_again(shared: House) -> None:
    assert shared.made("/v1/merges", body())["deduplicated_from"] == job_of(shared)["id"]


def test_test_inputs_make_it_transductive_and_its_metrics_say_so(shared: House) -> None:
    job = shared.finish("/v1/merges", body(method="surgery_v2", data={"split": "test"}, evaluate=["kind"]))
    assert job["result"]["data"]["learned"]["transductive"] is True
    metrics = shared.read(f"/v1/metrics?checkpoint={job['result']['checkpoint']}")["items"]
    assert [one["transductive"] for one in metrics] == [True]


@pytest.mark.parametrize(
    ("changes", "code", "pointer"),
    [
        ({"models": [{"checkpoint": "bert"}, {"checkpoint": "near-other"}]}, "validation_failed", "/models/0/task"),
        ({"data": {"tasks": ["kind", "knd"]}}, "task_not_found", "/data/tasks/1"),
        ({"data": {"tasks": ["kind"]}}, "validation_failed", "/data/tasks"),
        ({"parameters": {"rank": -1}}, "invalid_parameters", "/parameters/rank"),
        ({"parameters": {"shared": {"method": "peru_fft"}}}, "invalid_parameters", "/parameters/shared/method"),
        ({"post_steps": [{"name": "svc"}]}, "validation_failed", "/post_steps"),
        ({"overrides": [{"match": "*", "parameters": {"rank": 2}}]}, "validation_failed", "/overrides"),
    ],
)
@pytest.mark.parametrize("method", ["surgery", "surgery_v2"])
def test_what_cannot_be_done_is_refused_with_its_place(
    shared: House, method: str, changes: Document, code: str, pointer: str
) -> None:
    problem = shared.post("/v1/merges", body(method=method, **changes)).json()
    assert (problem["code"], problem["errors"][0]["pointer"]) == (code, pointer), problem


def test_a_task_without_the_split_is_refused_with_what_it_has(shared: House) -> None:
    task = shared.task_body("bare")
    del task["dataset"]["validation"]
    shared.made("/v1/tasks", task)
    problem = shared.post("/v1/merges", body(data={"tasks": ["bare", "other"]})).json()
    assert problem["errors"][0]["pointer"] == "/data/tasks/0"
    assert "has no validation split; it has" in problem["errors"][0]["message"]
