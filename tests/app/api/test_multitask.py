"""Multitask artifacts over HTTP: merged, downloaded, materialized, evaluated, deleted."""

import io
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from tests.app.api.house import Document, House, draw
from tests.app.api.test_measuring import refused


def peru(*models: str, **fields: Any) -> Document:
    """Return a merge by peru_fft; each model is labeled like itself without its hyphen."""
    return {
        "method": "peru_fft",
        "base_model": "base",
        "models": [{"checkpoint": name, "task": name.replace("-", "")} for name in models],
        "parameters": {"density": 1.0},
        **fields,
    }


@pytest.fixture
def merged(house: House) -> Document:
    """Return a multitask merge of two models, done, as the checkpoint `merged`."""
    house.family()
    return house.finish("/v1/merges", peru("model-0", "model-1", output={"name": "merged"}))


def artifact_of(job: Document) -> str:
    return str(job["result"]["artifacts"][0])


def download(house: House, artifact: str, path: str) -> dict[str, Any]:
    response = house.get(f"/v1/artifacts/{artifact}/files/{path}")
    assert response.status_code == 200
    return load(response.content)


# --- merged -----------------------------------------------------------------------------------------------------------


def test_a_merge_gives_a_multitask_checkpoint_with_a_patch_per_task(house: House, merged: Document) -> None:
    checkpoint = house.read("/v1/checkpoints/merged")
    artifact = house.read(f"/v1/artifacts/{artifact_of(merged)}")

    assert checkpoint["kind"] == "multitask"
    assert {"model.safetensors", "patches/model0.safetensors", "patches/model1.safetensors"} <= {
        file["path"] for file in artifact["files"]
    }
    assert merged["spec"]["recipe"]["models"][0]["task"] == "model0"


def test_the_result_says_what_is_stored_against_one_model_per_task(house: House, merged: Document) -> None:
    storage = merged["result"]["data"]["storage"]
    artifact = house.read(f"/v1/artifacts/{artifact_of(merged)}")
    sizes = {file["path"]: file["size_bytes"] for file in artifact["files"]}
    stored = sum(size for path, size in sizes.items() if path.endswith(".safetensors"))

    assert (storage["n_tasks"], storage["stored_bytes"]) == (2, stored)
    assert storage["separate_bytes"] == 2 * 4 * (3 + 12)
    assert storage["byte_ratio"] == pytest.approx(stored / 120, abs=1e-6)
    assert storage["parameter_ratio"] == 1.5  # the shared model and two whole ones, of two
    assert [patch["task"] for patch in storage["patches"]] == ["model0", "model1"]
    assert artifact["storage"] == storage
    listed = {item["id"]: item["storage"] for item in house.read("/v1/artifacts")["items"]}
    assert listed[artifact["id"]] == storage
    assert all(found is None for name, found in listed.items() if name != artifact["id"])
    card = house.get(f"/v1/artifacts/{artifact_of(merged)}/files/README.md").text
    assert f"bytes stored: {stored:,}" in card


def test_a_patch_is_downloaded_alone_and_holds_the_models_own_values(house: House, merged: Document) -> None:
    artifact = artifact_of(merged)

    patch = download(house, artifact, "patches/model1.safetensors")
    part = house.get(f"/v1/artifacts/{artifact}/files/patches/model1.safetensors", headers={"Range": "bytes=0-7"})

    base, near = draw(0), draw(2)
    np.testing.assert_array_equal(patch["weight::values"], base["weight"] + near["weight"])
    assert (part.status_code, len(part.content)) == (206, 8)


def unpack(house: House, artifact: str, name: str) -> Path:
    """Download an artifact's archive into a folder of the file roots."""
    with tarfile.open(fileobj=io.BytesIO(house.get(f"/v1/artifacts/{artifact}/archive").content)) as archive:
        archive.extractall(house.data / name, filter="data")
    return house.data / name / artifact


@pytest.mark.parametrize("storage", ["reference", "copy"])
def test_a_downloaded_artifact_is_imported_as_a_multitask_checkpoint(
    house: House, merged: Document, storage: str
) -> None:
    folder = unpack(house, artifact_of(merged), "downloads")

    house.register_folder("again", folder, storage=storage, base_checkpoint="base")

    original, again = (house.read(f"/v1/checkpoints/{name}") for name in ("merged", "again"))
    assert (again["state"], again["kind"]) == ("ready", "multitask")
    assert (again["weights_digest"], again["content_digest"]) == (
        original["weights_digest"],
        original["content_digest"],
    )
    if storage == "copy":
        made = house.finish(f"/v1/artifacts/{again['artifact']}/materializations", {"task": "model1"})
        materialized = house.read(f"/v1/checkpoints/{made['result']['checkpoint']}")
        assert materialized["weights_digest"] == house.read("/v1/checkpoints/model-1")["weights_digest"]
        assert house.read(f"/v1/artifacts/{again['artifact']}")["storage"]["n_tasks"] == 2


def test_a_broken_patch_leaves_the_import_invalid(house: House, merged: Document) -> None:
    folder = unpack(house, artifact_of(merged), "broken")
    patch = folder / "patches" / "model1.safetensors"
    patch.write_bytes(patch.read_bytes().replace(b'"weight::values"', b'"height::values"'))

    house.register_folder("broken", folder)

    checkpoint = house.read("/v1/checkpoints/broken")
    assert (checkpoint["state"], checkpoint["problem"]["code"]) == ("invalid", "invalid_checkpoint")
    assert "patches/model1.safetensors, tensor 'height': found parts" in checkpoint["problem"]["detail"]


def test_the_archive_and_the_head_of_a_patch_are_as_of_other_files(house: House, merged: Document) -> None:
    path = f"/v1/artifacts/{artifact_of(merged)}"
    file = f"{path}/files/patches/model0.safetensors"

    assert b"patches/model0.safetensors" in house.get(f"{path}/archive").content
    tag = house.get(file).headers["etag"]
    assert house.get(file, headers={"If-None-Match": tag}).status_code == 304


def test_the_labels_are_the_checkpoints_tasks_or_names_where_the_request_gives_none(house: House) -> None:
    house.family(1, task="tickets")
    house.register("other", draw(7), base_checkpoint="base")
    body = peru() | {"models": [{"checkpoint": "model-0"}, {"checkpoint": "other"}]}

    job = house.finish("/v1/merges", body)

    assert [patch["task"] for patch in job["result"]["data"]["storage"]["patches"]] == ["tickets", "other"]


def test_two_models_of_one_label_are_refused(house: House) -> None:
    house.family(2, task="tickets")
    body = peru() | {"models": [{"checkpoint": "model-0"}, {"checkpoint": "model-1"}]}

    problem = refused(house, "/v1/merges", body, 422, "validation_failed")

    assert problem["errors"][0]["pointer"] == "/models/1/task"
    assert "models[0] has the task 'tickets', too" in problem["detail"]


def test_nothing_may_stand_behind_a_multitask_method(house: House) -> None:
    house.family()

    body = peru("model-0", "model-1", post_steps=[{"name": "anything"}])

    assert refused(house, "/v1/merges", body, 422, "validation_failed")["errors"][0]["pointer"] == "/post_steps"


def test_pruning_over_a_merge_is_peru_with_that_merge_shared(house: House) -> None:
    house.family()
    shared = {"method": "task_arithmetic", "parameters": {"scaling_coefficient": 0.4}}
    models = [{"checkpoint": "model-0"}, {"checkpoint": "model-1"}]
    common = {"base_model": "base", "models": models}
    house.finish("/v1/merges", {**shared, **common, "output": {"name": "shared"}})

    peru = {"method": "peru_fft", "parameters": {"shared": shared, "density": 0.3}}
    one = house.finish("/v1/merges", {**common, **peru})
    over = {"method": "post_pruning", "base_model": "shared", "models": models, "parameters": {"density": 0.3}}
    other = house.finish("/v1/merges", over)

    for path in ("model.safetensors", "patches/model-0.safetensors", "patches/model-1.safetensors"):
        expected, found = (download(house, artifact_of(job), path) for job in (one, other))
        assert expected.keys() == found.keys()
        assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_signs_over_a_merge_are_those_of_what_the_merge_has_lost(house: House) -> None:
    house.family()
    models = [{"checkpoint": "model-0"}, {"checkpoint": "model-1"}]
    shared = {"method": "task_arithmetic", "parameters": {"scaling_coefficient": 0.4}}
    dense = house.finish("/v1/merges", {**shared, "base_model": "base", "models": models, "output": {"name": "shared"}})
    one = house.finish("/v1/merges", {"method": "bitdelta", "base_model": "shared", "models": models})

    before, after = (download(house, artifact_of(job), "model.safetensors") for job in (dense, one))
    assert all(np.array_equal(before[name], after[name]) for name in before)
    patch = download(house, artifact_of(one), "patches/model-0.safetensors")
    assert any(name.endswith("::signs") for name in patch)


def test_a_multitask_checkpoint_is_no_input_of_a_merge(house: House, merged: Document) -> None:
    body = {"method": "average", "models": [{"checkpoint": "merged"}, {"checkpoint": "model-0"}]}

    problem = refused(house, "/v1/merges", body, 422, "validation_failed")

    assert "is of kind multitask" in problem["detail"]


def test_the_plan_says_how_much_room_the_patches_take_at_most(house: House, merged: Document) -> None:
    plan = house.made("/v1/plans", peru("model-0", "model-1"))

    artifact = house.read(f"/v1/artifacts/{artifact_of(merged)}")
    assert plan["deduplicated_from"] == merged["id"]
    assert plan["disk_bytes"] > plan["bytes_written"] >= artifact["size_bytes"] - 8000  # recipe and card aside


def test_an_equal_merge_is_the_same_artifact_and_other_labels_are_not(house: House, merged: Document) -> None:
    equal = house.made("/v1/merges", peru("model-0", "model-1"))
    other = peru("model-0", "model-1")
    other["models"][0]["task"] = "another"

    assert equal["deduplicated_from"] == merged["id"]
    assert house.read(f"/v1/checkpoints/{equal['result']['checkpoint']}")["kind"] == "multitask"
    assert house.made("/v1/merges", other)["state"] == "queued"


# --- materialized -----------------------------------------------------------------------------------------------------


def test_a_task_is_materialized_as_a_dense_checkpoint(house: House, merged: Document) -> None:
    path = f"/v1/artifacts/{artifact_of(merged)}/materializations"

    response = house.post(path, {"task": "model0", "output": {"name": "again", "tags": {"a": "b"}}})

    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["kind"], job["state"]) == ("materialize", "queued")
    house.work()
    job = house.read(f"/v1/jobs/{job['id']}")
    assert job["state"] == "succeeded", job["problem"]
    checkpoint = house.read("/v1/checkpoints/again@1")
    original = house.read("/v1/checkpoints/model-0")
    assert (checkpoint["kind"], checkpoint["id"]) == ("dense", job["result"]["checkpoint"])
    assert checkpoint["tags"] == {"a": "b"}
    assert checkpoint["base_checkpoint"] == original["base_checkpoint"]
    assert checkpoint["weights_digest"] == original["weights_digest"]  # density 1 gives the model to the bit


def test_a_materialized_model_has_its_artifact_in_its_lineage(house: House, merged: Document) -> None:
    job = house.finish(f"/v1/artifacts/{artifact_of(merged)}/materializations", {"task": "model1"})

    checkpoint = job["result"]["checkpoint"]
    edges = house.read(f"/v1/checkpoints/{checkpoint}/lineage")["edges"]

    assert {"source": merged["result"]["checkpoint"], "target": checkpoint, "role": "model", "job": job["id"]} in edges
    assert house.read(f"/v1/checkpoints/{checkpoint}")["name"] == "merged-model1"
    assert house.read("/v1/jobs?kind=materialize&task=model1")["items"][0]["id"] == job["id"]


def test_several_tasks_are_materialized_by_one_job(house: House, merged: Document) -> None:
    path = f"/v1/artifacts/{artifact_of(merged)}/materializations"

    job = house.finish(path, {"tasks": ["model1", "model0"], "output": {"name": "of", "tags": {"a": "b"}}})

    assert job["spec"]["tasks"] == [{"task": "model1", "name": "of-model1"}, {"task": "model0", "name": "of-model0"}]
    assert job["result"]["checkpoint"] is None
    made = job["result"]["data"]["checkpoints"]
    assert list(made) == ["model1", "model0"]
    for place, task in enumerate(made):
        checkpoint = house.read(f"/v1/checkpoints/of-{task}@1")
        original = house.read(f"/v1/checkpoints/model-{task[-1]}")
        assert checkpoint["weights_digest"] == original["weights_digest"]
        assert (checkpoint["id"], checkpoint["artifact"]) == (made[task], job["result"]["artifacts"][place])
        assert checkpoint["tags"] == {"a": "b"}
        edges = house.read(f"/v1/checkpoints/{made[task]}/lineage")["edges"]
        assert {
            "source": merged["result"]["checkpoint"],
            "target": made[task],
            "role": "model",
            "job": job["id"],
        } in edges
        assert house.read(f"/v1/jobs?kind=materialize&task={task}")["items"][0]["id"] == job["id"]
        response = house.get(f"/v1/artifacts/{checkpoint['artifact']}/files/model.safetensors")
        assert response.status_code == 200


def test_models_of_several_tasks_are_named_after_the_artifact_by_default(house: House, merged: Document) -> None:
    house.finish(f"/v1/artifacts/{artifact_of(merged)}/materializations", {"tasks": ["model0", "model1"]})
    assert house.read("/v1/checkpoints/merged-model0@1")["kind"] == "dense"
    assert house.read("/v1/checkpoints/merged-model1@1")["kind"] == "dense"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "either task or tasks must name what is written; found neither"),
        ({"task": "model0", "tasks": ["model1"]}, "either task or tasks must name what is written; found both"),
        ({"tasks": []}, "found neither"),
        ({"tasks": ["model0", "model0"]}, "tasks must differ; found twice: 'model0'"),
        ({"tasks": ["model0", "model7"]}, "/tasks/1: .* has no patch for task 'model7'; it has: model0, model1"),
    ],
)
def test_what_is_materialized_is_named_once(house: House, merged: Document, body: Document, said: str) -> None:
    problem = refused(house, f"/v1/artifacts/{artifact_of(merged)}/materializations", body, 422, "validation_failed")
    assert re.search(said, problem["detail"] + str(problem["errors"]))


def test_a_materialized_model_can_be_merged(house: House, merged: Document) -> None:
    path = f"/v1/artifacts/{artifact_of(merged)}/materializations"
    house.finish(path, {"task": "model0", "output": {"name": "first"}})

    job = house.finish("/v1/merges", {"method": "average", "models": [{"checkpoint": "first"}, {"checkpoint": "base"}]})

    assert job["state"] == "succeeded"


def test_an_unknown_task_is_refused_with_the_tasks_there_are(house: House, merged: Document) -> None:
    path = f"/v1/artifacts/{artifact_of(merged)}/materializations"

    problem = refused(house, path, {"task": "model2"}, 422, "validation_failed")

    assert "has no patch for task 'model2'; it has: model0, model1" in problem["detail"]
    assert problem["errors"][0]["pointer"] == "/task"
    assert problem["errors"][0]["did_you_mean"] in ("model0", "model1")


def test_a_dense_artifact_is_a_model_already(house: House) -> None:
    house.family()
    body = {"method": "average", "models": [{"checkpoint": "model-0"}, {"checkpoint": "model-1"}]}
    dense = artifact_of(house.finish("/v1/merges", body))

    problem = refused(house, f"/v1/artifacts/{dense}/materializations", {"task": "model0"}, 422, "validation_failed")

    assert "is dense, expected a multitask artifact" in problem["detail"]


def test_a_report_has_no_tasks_and_an_unknown_artifact_is_not_found(house: House) -> None:
    house.family()
    body = {"kind": "task_vector_cosines", "base_model": "base", "models": ["model-0"]}
    report = artifact_of(house.finish("/v1/analyses", body))

    refused(house, f"/v1/artifacts/{report}/materializations", {"task": "a"}, 422, "validation_failed")
    refused(house, "/v1/artifacts/art_nowhere/materializations", {"task": "a"}, 404, "not_found")


def test_a_materialization_is_made_once_per_key(house: House, merged: Document) -> None:
    path = f"/v1/artifacts/{artifact_of(merged)}/materializations"
    key = {"Idempotency-Key": "once"}

    first = house.post(path, {"task": "model0"}, headers=key)
    again = house.post(path, {"task": "model0"}, headers=key)
    other = house.post(path, {"task": "model1"}, headers=key)

    assert first.json() == again.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")


def test_an_artifact_is_kept_while_it_is_materialized(house: House, merged: Document) -> None:
    artifact = artifact_of(merged)
    house.made(f"/v1/artifacts/{artifact}/materializations", {"task": "model0"})

    refusal = house.client.delete(f"/v1/artifacts/{artifact}")
    house.work()
    done = house.client.delete(f"/v1/artifacts/{artifact}")

    assert (refusal.status_code, refusal.json()["code"]) == (409, "resource_in_use")
    assert done.status_code == 204
    assert house.get(f"/v1/artifacts/{artifact}/files/patches/model0.safetensors").status_code == 404
    refused(house, f"/v1/artifacts/{artifact}/materializations", {"task": "model0"}, 404, "not_found")


# --- evaluated --------------------------------------------------------------------------------------------------------


@pytest.fixture
def berts(house: House) -> House:
    """Return a house with a base, two models of their own tasks, and the tasks."""
    house.bert("base")
    for seed, task in ((1, "kind"), (2, "color")):
        house.bert(task, seed=seed, base_checkpoint="base", task=task)
        house.made("/v1/tasks", house.task_body(task))
    return house


def values_of(job: Document) -> dict[tuple[str, str], float]:
    assert job["state"] == "succeeded", job["problem"]
    return {(metric["task"], metric["name"]): metric["value"] for metric in job["result"]["metrics"]}


def test_each_task_is_measured_with_its_own_patch(berts: House) -> None:
    house = berts
    body = peru() | {"models": [{"checkpoint": "kind"}, {"checkpoint": "color"}], "output": {"name": "merged"}}
    house.finish("/v1/merges", body)

    merged = house.finish("/v1/evaluations", {"checkpoint": "merged", "tasks": ["kind", "color"]})

    alone = [
        values_of(house.finish("/v1/evaluations", {"checkpoint": task, "tasks": [task]})) for task in ("kind", "color")
    ]
    assert values_of(merged) == alone[0] | alone[1]
    assert merged["spec"]["tasks"][0]["patch"] == "kind"


def test_a_merge_evaluates_its_tasks_with_their_patches(berts: House) -> None:
    house = berts
    body = peru() | {"models": [{"checkpoint": "kind"}, {"checkpoint": "color"}], "evaluate": ["kind", "color"]}

    merge = house.finish("/v1/merges", body)

    jobs = [house.read(f"/v1/jobs/{job}") for job in merge["result"]["evaluations"]]
    assert [job["state"] for job in jobs] == ["succeeded", "succeeded"]
    assert [job["spec"]["tasks"][0]["patch"] for job in jobs] == ["kind", "color"]


def test_a_task_without_a_patch_is_refused_with_the_labels_there_are(berts: House) -> None:
    house = berts
    house.made("/v1/tasks", house.task_body("mood"))
    body = peru() | {"models": [{"checkpoint": "kind"}, {"checkpoint": "color"}], "output": {"name": "merged"}}

    unmerged = refused(house, "/v1/merges", body | {"evaluate": ["kind", "mood"]}, 422, "validation_failed")
    house.finish("/v1/merges", body)
    evaluation = {"checkpoint": "merged", "tasks": ["mood"]}
    problem = refused(house, "/v1/evaluations", evaluation, 422, "validation_failed")

    assert unmerged["errors"][0]["pointer"] == "/evaluate/1"
    assert "merged@1 has no patch for task 'mood'; it has: kind, color" in problem["detail"]
    assert problem["errors"][0]["pointer"] == "/tasks/0"
