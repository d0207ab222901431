"""Tasks added to merged artifacts over HTTP, without the models they were made of."""

import io
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from tests.app.api.house import Document, House, draw
from tests.app.api.test_measuring import refused
from tests.app.api.test_multitask import artifact_of


def merge(method: str, *models: str, **fields: Any) -> Document:
    return {"method": method, "base_model": "base", "models": [{"checkpoint": name} for name in models], **fields}


def weights_of(house: House, job: Document) -> dict[str, Any]:
    content = house.get(f"/v1/artifacts/{artifact_of(job)}/files/model.safetensors").content
    return load(io.BytesIO(content).getvalue())


def files_of(house: House, job: Document) -> dict[str, str]:
    files = house.read(f"/v1/artifacts/{artifact_of(job)}")["files"]
    return {file["path"]: file["sha256"] for file in files if file["path"].endswith(".safetensors")}


def add(house: House, job: Document, *models: str, **fields: Any) -> Document:
    body = {"models": [{"checkpoint": name} for name in models], **fields}
    return house.finish(f"/v1/artifacts/{artifact_of(job)}/tasks", body)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("breadcrumbs", {"density": 0.5}),
        ("breadcrumbs", {"density": 0.5, "scope": "global", "scaling_coefficient": 0.7}),
        ("task_arithmetic", {"scaling_coefficient": 0.4}),
    ],
)
def test_a_model_added_to_a_dense_result_gives_what_merging_all_at_once_gives(
    house: House, method: str, parameters: Document
) -> None:
    house.family(3)
    two = house.finish("/v1/merges", merge(method, "model-0", "model-1", parameters=parameters))
    three = house.finish("/v1/merges", merge(method, "model-0", "model-1", "model-2", parameters=parameters))

    job = add(house, two, "model-2")

    assert job["state"] == "succeeded", job["problem"]
    expected = weights_of(house, three)
    for name, found in weights_of(house, job).items():
        # three roundings in place of one, each half a unit in the last place of what was rounded
        spacing = np.spacing(np.maximum(np.abs(expected[name]), np.abs(draw(0)[name])).max())
        assert np.abs(found - expected[name]).max() <= 2 * spacing


def test_the_old_models_may_be_gone(house: House) -> None:
    house.family(3)
    two = house.finish("/v1/merges", merge("task_arithmetic", "model-0", "model-1", output={"name": "merged"}))
    for name in ("model-0", "model-1"):
        assert house.client.delete(f"/v1/checkpoints/{name}").status_code == 204

    job = add(house, two, "model-2")

    assert job["state"] == "succeeded", job["problem"]
    checkpoint = house.read(f"/v1/checkpoints/{job['result']['checkpoint']}")
    assert (checkpoint["name"], checkpoint["version"], checkpoint["kind"]) == ("merged", 2, "dense")
    assert checkpoint["base_checkpoint"] == house.read("/v1/checkpoints/base")["id"]
    edges = house.read(f"/v1/checkpoints/{checkpoint['id']}/lineage")["edges"]
    assert two["result"]["checkpoint"] in [edge["source"] for edge in edges]


@pytest.mark.parametrize("method", ["post_pruning", "bitdelta", "peru_lora"])
def test_a_task_added_to_patches_over_the_base_gives_the_files_of_merging_all_at_once(
    house: House, method: str
) -> None:
    house.family(3)
    two = house.finish("/v1/merges", merge(method, "model-0", "model-1"))
    three = house.finish("/v1/merges", merge(method, "model-0", "model-1", "model-2"))

    job = add(house, two, "model-2")

    assert job["state"] == "succeeded", job["problem"]
    assert files_of(house, job) == files_of(house, three)
    patches = job["result"]["data"]["storage"]["patches"]
    assert [patch["task"] for patch in patches] == ["model-0", "model-1", "model-2"]


@pytest.mark.parametrize("parameters", [{"density": 0.4}, {"density": 0.3, "trim_scope": "tensor"}])
def test_a_task_stitched_to_a_result_gives_the_files_of_stitching_all_at_once(
    house: House, parameters: Document
) -> None:
    house.family(4)
    method = "localize_and_stitch_dataless"
    two = house.finish("/v1/merges", merge(method, "model-0", "model-1", parameters=parameters))
    four = house.finish("/v1/merges", merge(method, *(f"model-{n}" for n in range(4)), parameters=parameters))

    three = add(house, two, "model-2")
    job = add(house, three, "model-3")

    assert job["state"] == "succeeded", job["problem"]
    assert sorted(files_of(house, job)) == ["model.safetensors", "sums.safetensors"]
    assert files_of(house, job) == files_of(house, four)


def test_a_result_that_kept_no_sums_takes_no_more(house: House) -> None:
    house.family()
    body = merge("localize_and_stitch_dataless", "model-0", parameters={"keep_sums": False}, output={"name": "bare"})
    job = house.finish("/v1/merges", body)

    more = {"models": [{"checkpoint": "model-1"}]}
    problem = refused(house, f"/v1/artifacts/{artifact_of(job)}/tasks", more, 422, "validation_failed")
    onto = merge("localize_and_stitch_dataless", "model-1", onto="bare")
    missing = refused(house, "/v1/merges", onto, 422, "validation_failed")

    assert list(files_of(house, job)) == ["model.safetensors"]
    assert "only with keep_sums = true, found false" in problem["detail"]
    assert "has no sums.safetensors beside its weights" in missing["detail"]


def test_sums_counted_from_another_base_fail(house: House) -> None:
    house.family()
    method = "localize_and_stitch_dataless"
    house.finish("/v1/merges", merge(method, "model-0", output={"name": "merged"}))

    job = house.finish("/v1/merges", merge(method, "model-0", onto="merged") | {"base_model": "model-1"})

    assert (job["state"], job["problem"]["code"]) == ("failed", "incompatible_checkpoints")
    assert "name the base model that it was merged over" in job["problem"]["detail"]


def test_a_task_added_to_peru_is_pruned_over_what_is_shared(house: House) -> None:
    house.family(3)
    two = house.finish("/v1/merges", merge("peru_fft", "model-0", "model-1", parameters={"density": 1.0}))

    job = add(house, two, "model-2", output={"name": "more"})
    again = add(house, job, "base", output={"name": "most"})

    before, after = files_of(house, two), files_of(house, job)
    assert job["spec"]["method"] == "post_pruning"
    assert before.items() < after.items()
    made = house.finish(f"/v1/artifacts/{artifact_of(job)}/materializations", {"task": "model-2"})
    materialized = house.read(f"/v1/checkpoints/{made['result']['checkpoint']}")
    assert materialized["weights_digest"] == house.read("/v1/checkpoints/model-2")["weights_digest"]
    assert len(files_of(house, again)) == 5
    assert house.read("/v1/checkpoints/most")["base_checkpoint"] == house.read("/v1/checkpoints/base")["id"]


def test_a_label_that_is_taken_is_refused(house: House) -> None:
    house.family()
    job = house.finish("/v1/merges", merge("post_pruning", "model-0"))

    body = {"models": [{"checkpoint": "model-1", "task": "model-0"}]}
    problem = refused(house, f"/v1/artifacts/{artifact_of(job)}/tasks", body, 422, "validation_failed")

    assert problem["errors"][0]["pointer"] == "/models/0/task"
    assert "has a patch for task 'model-0' already" in problem["detail"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (merge("ties", "model-0"), "what ties gives depends on all models at once"),
        (merge("emr", "model-0"), "what emr gives depends on all models at once"),
        (merge("breadcrumbs", "model-0", parameters={"elect_signs": True}), "only with elect_signs = false"),
        (merge("peru_lora", "model-0", parameters={"mode": "residual"}), 'only with mode = "per_adapter"'),
        (
            merge("breadcrumbs", "model-0", overrides=[{"match": "*", "parameters": {"elect_signs": True}}]),
            "/overrides/0/parameters/elect_signs: breadcrumbs adds models to a result only with elect_signs = false",
        ),
        (
            merge("task_arithmetic", "model-0", overrides=[{"match": "*", "weights": [0.5]}]),
            "overrides with values per model",
        ),
    ],
)
def test_a_result_that_knows_all_models_takes_no_more(house: House, body: Document, reason: str) -> None:
    house.family()
    job = house.finish("/v1/merges", body)

    path = f"/v1/artifacts/{artifact_of(job)}/tasks"
    problem = refused(house, path, {"models": [{"checkpoint": "model-1"}]}, 422, "validation_failed")

    assert reason in problem["detail"]


def test_what_was_not_merged_has_no_method_to_add_by(house: House) -> None:
    house.family()
    multitask = house.finish("/v1/merges", merge("post_pruning", "model-0"))
    made = house.finish(f"/v1/artifacts/{artifact_of(multitask)}/materializations", {"task": "model-0"})

    path = f"/v1/artifacts/{artifact_of(made)}/tasks"
    problem = refused(house, path, {"models": [{"checkpoint": "model-1"}]}, 422, "validation_failed")
    refused(house, "/v1/artifacts/art_nowhere/tasks", {"models": [{"checkpoint": "model-1"}]}, 404, "not_found")
    refused(house, path, {"models": []}, 422, "validation_failed")

    assert "was not merged" in problem["detail"]


def test_a_recipe_with_an_addition_gives_the_same_again(house: House) -> None:
    house.family(3)
    two = house.finish("/v1/merges", merge("post_pruning", "model-0", "model-1"))
    three = add(house, two, "model-2")

    recipe = house.read(f"/v1/jobs/{three['id']}/recipe")
    again = house.finish("/v1/merges", recipe | {"force": True})

    assert recipe["onto"].startswith("sha256:")
    assert files_of(house, again) == files_of(house, three)
    assert again["recipe_digest"] == three["recipe_digest"]


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"method": "ties"}, "/onto"),
        ({"method": "average", "base_model": None}, "/onto"),
        ({"method": "post_pruning"}, "/onto"),
        ({"parameters": {"elect_signs": True}}, "/parameters/elect_signs"),
    ],
)
def test_a_merge_onto_a_result_of_another_kind_is_refused(house: House, changes: Document, pointer: str) -> None:
    house.family()
    house.finish("/v1/merges", merge("breadcrumbs", "model-0", output={"name": "merged"}))

    body = merge("breadcrumbs", "model-1", onto="merged") | changes
    problem = refused(house, "/v1/merges", body, 422, "validation_failed")

    assert problem["errors"][0]["pointer"] == pointer


def test_a_merge_onto_a_result_with_other_tensors_fails(house: House) -> None:
    house.family()
    house.register("other", draw(3, {"bias": (3,), "weight": (5, 3)}))

    job = house.finish("/v1/merges", merge("task_arithmetic", "model-0", onto="other"))

    assert (job["state"], job["problem"]["code"]) == ("failed", "incompatible_checkpoints")
    assert "tensor 'weight' has shape [5, 3] in it, expected [4, 3]" in job["problem"]["detail"]


def test_old_tasks_and_new_ones_are_measured_with_their_patches(house: House) -> None:
    house.bert("base")
    for seed, task in ((1, "kind"), (2, "color")):
        house.bert(task, seed=seed, base_checkpoint="base", task=task)
        house.made("/v1/tasks", house.task_body(task))
    one = house.finish("/v1/merges", merge("post_pruning", "kind"))

    job = add(house, one, "color", evaluate=["kind", "color"])

    evaluations = [house.read(f"/v1/jobs/{evaluation}") for evaluation in job["result"]["evaluations"]]
    assert [evaluation["spec"]["tasks"][0]["patch"] for evaluation in evaluations] == ["kind", "color"]
    assert [evaluation["state"] for evaluation in evaluations] == ["succeeded", "succeeded"]
