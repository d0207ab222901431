"""Merges over HTTP: what is accepted, what is refused and how it is said, and what a merge leaves behind."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from app.db.engine import Sessions
from app.domain.planning import plan_merge
from app.queue import JobQueue
from app.services import reaping, running
from tests.app.api.house import Document, House, draw, open_house


def average(*models: str, **fields: Any) -> Document:
    return {"method": "average", "models": [{"checkpoint": name} for name in models], **fields}


def arithmetic(*models: str, **fields: Any) -> Document:
    return {
        "method": "task_arithmetic",
        "base_model": "base",
        "models": [{"checkpoint": name} for name in models],
        **fields,
    }


def weights_of(house: House, job: Document) -> dict[str, Any]:
    artifact = house.read(f"/v1/artifacts/{job['result']['artifacts'][0]}")
    content = house.get(f"/v1/artifacts/{artifact['id']}/files/model.safetensors").content
    return load(io.BytesIO(content).getvalue())


def test_a_merge_is_accepted_run_and_kept(any_house: House) -> None:
    house = any_house
    house.family()

    response = house.post("/v1/merges", average("model-0", "model-1", output={"name": "merged", "tags": {"a": "b"}}))

    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["kind"], job["state"], job["attempts"]) == ("merge", "queued", 0)
    house.work()
    job = house.read(f"/v1/jobs/{job['id']}")
    assert job["state"] == "succeeded", job["problem"]
    checkpoint = house.read("/v1/checkpoints/merged@1")
    assert checkpoint["id"] == job["result"]["checkpoint"]
    assert checkpoint["tags"] == {"a": "b"}
    artifact = house.read(f"/v1/artifacts/{job['result']['artifacts'][0]}")
    assert artifact["checkpoint"] == checkpoint["id"]
    assert artifact["recipe_digest"] == job["recipe_digest"]
    assert {"model.safetensors", "recipe.json", "README.md"} <= {file["path"] for file in artifact["files"]}


def test_the_merged_weights_are_those_of_brute_force(house: House) -> None:
    house.family()

    job = house.finish("/v1/merges", average("model-0", "model-1"))

    base, first, second = draw(0), draw(1), draw(2)
    for name, found in weights_of(house, job).items():
        np.testing.assert_allclose(found, base[name] + (first[name] + second[name]) / 2, rtol=1e-6)


def test_refs_are_pinned_when_the_merge_is_accepted(house: House) -> None:
    house.family()
    job = house.made("/v1/merges", average("model-0", "model-1"))
    pinned = [model["checkpoint"] for model in job["spec"]["models"]]
    house.register("model-0", draw(9))  # a new version, after the merge was accepted

    house.work()

    assert pinned[0] == house.read("/v1/checkpoints/model-0@1")["id"]
    assert house.read(f"/v1/jobs/{job['id']}")["state"] == "succeeded"


def test_a_merge_without_a_name_is_named_by_its_recipe(house: House) -> None:
    house.family()

    job = house.finish("/v1/merges", average("model-0", "model-1"))

    checkpoint = house.read(f"/v1/checkpoints/{job['result']['checkpoint']}")
    assert checkpoint["name"] == f"average-{job['recipe_digest'][:8]}"


def test_the_name_a_merge_is_given_is_one_that_may_be_asked_for(house: House) -> None:
    house.family()
    given = house.finish("/v1/merges", arithmetic("model-0", "model-1"))
    name = house.read(f"/v1/checkpoints/{given['result']['checkpoint']}")["name"]

    asked = house.finish("/v1/merges", arithmetic("model-0", "model-1") | {"output": {"name": name}})

    assert house.read(f"/v1/checkpoints/{asked['result']['checkpoint']}")["name"] == name
    assert name.startswith("task-arithmetic-")


def test_the_merged_checkpoint_has_the_base_of_its_inputs(house: House) -> None:
    house.family()
    base = house.read("/v1/checkpoints/base")["id"]

    without = house.finish("/v1/merges", average("model-0", "model-1"))
    named = house.finish("/v1/merges", arithmetic("model-0", "model-1"))

    for job in (without, named):
        assert house.read(f"/v1/checkpoints/{job['result']['checkpoint']}")["base_checkpoint"] == base


def test_the_output_dtype_is_the_one_asked_for(house: House) -> None:
    house.family()

    job = house.finish("/v1/merges", average("model-0", "model-1", output={"dtype": "float16"}))

    assert {str(tensor.dtype) for tensor in weights_of(house, job).values()} == {"float16"}


def test_a_merge_of_a_merge_is_a_merge(house: House) -> None:
    house.family()
    house.finish("/v1/merges", average("model-0", "model-1", output={"name": "merged"}))

    job = house.finish("/v1/merges", arithmetic("merged", "model-0"))

    assert job["state"] == "succeeded"


# --- deduplication ----------------------------------------------------------------------------------------------------


def test_an_equal_recipe_succeeds_at_once_with_a_version_and_an_artifact_of_its_own(any_house: House) -> None:
    house = any_house
    house.family()
    first = house.finish("/v1/merges", average("model-0", "model-1", output={"name": "one"}))

    second = house.made("/v1/merges", average("model-0", "model-1", output={"name": "two"}))

    assert second["state"] == "succeeded"
    assert second["deduplicated_from"] == first["id"]
    assert second["recipe_digest"] == first["recipe_digest"]
    assert second["result"]["artifacts"] != first["result"]["artifacts"]
    assert house.read("/v1/checkpoints/two")["id"] == second["result"]["checkpoint"]
    files = [house.read(f"/v1/artifacts/{job['result']['artifacts'][0]}")["files"] for job in (first, second)]
    assert files[0] == files[1]


def test_an_equal_recipe_waits_for_the_one_that_runs(any_house: House) -> None:
    house = any_house
    house.family()
    first = house.made("/v1/merges", average("model-0", "model-1"))

    second = house.made("/v1/merges", average("model-0", "model-1"))
    assert (second["state"], second["waits_for"]) == ("queued", first["id"])
    run = house.work()

    assert [job["id"] for job in run] == [first["id"]]
    second = house.read(f"/v1/jobs/{second['id']}")
    assert (second["state"], second["deduplicated_from"]) == ("succeeded", first["id"])


def test_a_waiting_merge_runs_itself_when_the_first_is_canceled(house: House) -> None:
    house.family()
    first = house.made("/v1/merges", average("model-0", "model-1"))
    second = house.made("/v1/merges", average("model-0", "model-1"))

    assert house.post(f"/v1/jobs/{first['id']}/cancel").status_code == 202
    house.work()

    second = house.read(f"/v1/jobs/{second['id']}")
    assert (second["state"], second["deduplicated_from"]) == ("succeeded", None)


def test_a_waiting_merge_runs_itself_when_what_it_waited_for_is_deleted(
    any_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = any_house
    house.family()
    first = house.made("/v1/merges", average("model-0", "model-1"))
    second = house.made("/v1/merges", average("model-0", "model-1"))
    settle = reaping.settle_waiters

    def delete_then_settle(sessions: Sessions, queue: JobQueue, complete: running.CompleteWaiter) -> int:
        monkeypatch.undo()
        (artifact,) = house.read(f"/v1/jobs/{first['id']}")["result"]["artifacts"]
        assert house.client.delete(f"/v1/artifacts/{artifact}").status_code == 204
        return settle(sessions, queue, complete)

    monkeypatch.setattr(reaping, "settle_waiters", delete_then_settle)

    assert [job["id"] for job in house.work()] == [first["id"], second["id"]]
    second = house.read(f"/v1/jobs/{second['id']}")
    assert (second["state"], second["deduplicated_from"]) == ("succeeded", None)


def test_force_runs_an_equal_recipe_again(house: House) -> None:
    house.family()
    house.finish("/v1/merges", average("model-0", "model-1"))

    again = house.made("/v1/merges", average("model-0", "model-1", force=True))

    assert (again["state"], again["deduplicated_from"]) == ("queued", None)


def test_what_was_deleted_is_made_again(house: House) -> None:
    house.family()
    first = house.finish("/v1/merges", average("model-0", "model-1"))
    assert house.client.delete(f"/v1/artifacts/{first['result']['artifacts'][0]}").status_code == 204

    again = house.made("/v1/merges", average("model-0", "model-1"))

    assert (again["state"], again["deduplicated_from"]) == ("queued", None)


def test_equal_contents_under_other_names_are_an_equal_recipe(house: House) -> None:
    house.family()
    first = house.finish("/v1/merges", average("model-0", "model-1"))
    house.register("other", {name: draw(0)[name] + draw(1)[name] for name in draw(0)})

    second = house.made("/v1/merges", average("other", "model-1"))

    assert second["deduplicated_from"] == first["id"]


def test_another_weight_is_another_recipe(house: House) -> None:
    house.family()
    first = house.made("/v1/merges", average("model-0", "model-1"))

    body = average("model-0", "model-1")
    body["models"][1]["weight"] = 0.5
    second = house.made("/v1/merges", body)

    assert second["recipe_digest"] != first["recipe_digest"]


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_a_recipe_posted_again_is_the_same_merge(house: House) -> None:
    house.family()
    first = house.finish("/v1/merges", arithmetic("model-0", "model-1", parameters={"scaling_coefficient": 0.4}))

    recipe = house.read(f"/v1/jobs/{first['id']}/recipe")
    second = house.made("/v1/merges", recipe)

    assert recipe["models"][0]["checkpoint"].startswith("sha256:")
    assert second["deduplicated_from"] == first["id"]


def recipe_of(house: House, job: Document) -> Document:
    """Return recipe.json as it lies in a merge's artifact."""
    document: Document = house.read(f"/v1/artifacts/{job['result']['artifacts'][0]}/files/recipe.json")
    return document


def test_the_recipe_in_an_artifact_is_the_same_merge(any_house: House) -> None:
    house = any_house
    house.family()
    asked = arithmetic("model-0", "model-1", parameters={"scaling_coefficient": 0.4}) | {
        "seed": 3,
        "output": {"dtype": "float16", "shard_bytes": 2**21},
        "exclude": ["bias"],
        "nan_policy": "zero",
    }
    first = house.finish("/v1/merges", asked)
    recipe = recipe_of(house, first)

    planned = house.made("/v1/plans", recipe)
    second = house.made("/v1/merges", recipe)
    named = house.made("/v1/merges", recipe | {"output": {"name": "again", "tags": {"a": "b"}}, "priority": 5})
    forced = house.finish("/v1/merges", recipe | {"force": True})

    assert planned["recipe_digest"] == first["recipe_digest"]
    assert second["deduplicated_from"] == first["id"]
    assert named["deduplicated_from"] in (first["id"], second["id"])
    assert house.read(f"/v1/checkpoints/{named['result']['checkpoint']}")["name"] == "again"
    assert (named["priority"], named["tags"]) == (5, {"a": "b"})
    assert recipe_of(house, forced) == recipe


def test_a_recipe_travels_to_a_service_with_other_names_and_settings(house: House, tmp_path: Path) -> None:
    house.family()
    first = house.finish("/v1/merges", arithmetic("model-0", "model-1"))
    recipe = recipe_of(house, first)
    with open_house(tmp_path / "other", shard_bytes=2**20) as other:
        base = draw(0)
        other.register("root", base)
        for index in (1, 0):
            near = {name: tensor + draw(index + 1)[name] for name, tensor in base.items()}
            other.register(f"expert-{index}", near, base_checkpoint="root")
        second = other.finish("/v1/merges", recipe)

        assert second["recipe_digest"] == first["recipe_digest"]
        assert recipe_of(other, second) == recipe


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format_version": 2}, "expected 1, found 2"),
        ({"method_version": 99}, "/method_version"),
        ({"engine_version": 99}, "/engine_version"),
        ({"seeds": 1}, "seeds"),
        ({"models": [{"weight": 1.0}]}, "models/0/content_digest"),
        ({"output": []}, "/output"),
    ],
)
def test_a_recipe_that_cannot_be_repeated_is_refused(house: House, changes: Document, said: str) -> None:
    house.family()
    recipe = recipe_of(house, house.finish("/v1/merges", arithmetic("model-0", "model-1")))

    response = house.post("/v1/merges", recipe | changes)

    assert (response.status_code, response.json()["code"]) == (422, "validation_failed")
    assert said in response.json()["detail"]


def test_only_merges_have_a_recipe(house: House) -> None:
    begun = house.made("/v1/checkpoints", {"uri": house.write("a", draw(0)), "name": "a"})

    response = house.get(f"/v1/jobs/{begun['job']['id']}/recipe")

    assert response.status_code == 404
    assert "only merges have a recipe" in response.json()["detail"]


# --- refusals ---------------------------------------------------------------------------------------------------------


def refused(house: House, body: object, status: int, code: str, path: str = "/v1/merges") -> Document:
    response = house.post(path, body)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: Document = response.json()
    assert problem["code"] == code
    return problem


def test_a_misspelt_method_is_refused_with_the_nearest_name(house: House) -> None:
    problem = refused(house, average("a") | {"method": "tise"}, 422, "unknown_method")

    assert problem["errors"][0]["pointer"] == "/method"
    assert problem["errors"][0]["did_you_mean"] == "ties"


def test_a_misspelt_parameter_is_refused_with_the_nearest_name(house: House) -> None:
    body = average("a", base_model="b", parameters={"densty": 0.3}) | {"method": "ties"}

    problem = refused(house, body, 422, "invalid_parameters")

    assert problem["errors"] == [
        {
            "pointer": "/parameters/densty",
            "message": problem["errors"][0]["message"],
            "did_you_mean": "density",
        }
    ]


def test_a_parameter_out_of_range_is_refused_with_the_range(house: House) -> None:
    body = average("a", base_model="b", parameters={"density": 1.5}) | {"method": "ties"}

    problem = refused(house, body, 422, "invalid_parameters")

    assert "<= 1" in problem["errors"][0]["message"]
    assert "1.5" in problem["errors"][0]["message"]


def test_a_missing_base_model_is_refused(house: House) -> None:
    problem = refused(house, average("a") | {"method": "ties"}, 422, "validation_failed")

    assert problem["errors"][0]["pointer"] == "/base_model"


def test_slerp_takes_two_models(house: House) -> None:
    problem = refused(house, average("a", "b", "c") | {"method": "slerp"}, 422, "validation_failed")

    assert problem["errors"][0]["pointer"] == "/models"


def test_slerp_uses_no_weights(house: House) -> None:
    body = {"method": "slerp", "models": [{"checkpoint": "a", "weight": 0.5}, {"checkpoint": "b"}]}

    assert refused(house, body, 422, "validation_failed")["errors"][0]["pointer"] == "/models/0/weight"


def test_all_unknown_checkpoints_are_named_at_once(house: House) -> None:
    house.register("model-0", draw(0))

    problem = refused(house, average("model-O", "model-0", "nothing"), 422, "checkpoint_not_found")

    assert [error["pointer"] for error in problem["errors"]] == ["/models/0/checkpoint", "/models/2/checkpoint"]
    assert problem["errors"][0]["did_you_mean"] == "model-0"


def test_a_checkpoint_that_is_still_importing_is_refused(house: House) -> None:
    house.made("/v1/checkpoints", {"uri": house.write("a", draw(0)), "name": "a"})

    problem = refused(house, average("a"), 409, "checkpoint_not_ready")

    assert "still importing" in problem["detail"]


def test_other_tensors_are_refused_by_name(house: House) -> None:
    house.register("a", draw(0))
    house.register("b", draw(1, {"bias": (3,), "wieght": (4, 3)}))
    house.register("c", draw(1, {"bias": (4,), "weight": (4, 3)}))

    problem = refused(house, average("a", "b", "c"), 422, "incompatible_checkpoints")

    assert "wieght" in str(problem)
    assert "bias" in str(problem)


@pytest.mark.parametrize("field", ["priority", "seed", "force", "max_attempts", "timeout_seconds"])
def test_types_are_strict(house: House, field: str) -> None:
    problem = refused(house, average("a", **{field: "1"}), 422, "validation_failed")

    assert problem["errors"][0]["pointer"] == f"/{field}"


def test_more_than_256_models_are_refused(house: House) -> None:
    problem = refused(house, average(*["a"] * 257), 422, "validation_failed")

    assert problem["errors"][0]["pointer"] == "/models"
    assert "256" in problem["errors"][0]["message"]


def test_an_unknown_task_to_evaluate_is_refused_before_anything_runs(house: House) -> None:
    house.family()

    problem = refused(house, average("model-0", evaluate=["tickts"]), 422, "task_not_found")

    assert problem["errors"][0]["pointer"] == "/evaluate/0"
    assert house.read("/v1/jobs?kind=merge")["items"] == []


def test_a_glob_that_matches_nothing_is_refused(house: House) -> None:
    house.family()

    problem = refused(house, average("model-0", include=["wieght*"]), 422, "validation_failed")

    assert "wieght*" in problem["detail"]


def test_a_plan_that_does_not_fit_the_disk_is_refused(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.family()
    monkeypatch.setattr(type(house.wiring.storage), "free_bytes", lambda _self: 10)

    problem = refused(house, average("model-0", "model-1"), 507, "insufficient_storage")

    assert "10 left" in problem["detail"]
    assert house.read("/v1/jobs?kind=merge")["items"] == []


def test_an_input_that_changed_fails_the_job_with_its_name(house: House) -> None:
    house.family()
    job = house.made("/v1/merges", average("model-0", "model-1"))
    changed = house.read("/v1/checkpoints/model-0")["uri"].removeprefix("file://")
    with open(f"{changed}/model.safetensors", "ab") as file:  # noqa: PTH123
        file.write(b"x")

    house.work()

    problem = house.read(f"/v1/jobs/{job['id']}")["problem"]
    assert problem["code"] == "input_changed"
    assert problem["status"] == 409
    assert problem["type"] == "/problems/input_changed"


def test_nan_in_a_weight_fails_the_job_with_the_tensor(house: House) -> None:
    house.register("a", draw(0))
    house.register("b", draw(1) | {"weight": np.full((4, 3), np.nan, np.float32)})

    job = house.finish("/v1/merges", average("a", "b"))

    assert (job["state"], job["problem"]["code"]) == ("failed", "not_finite")
    assert "weight" in job["problem"]["detail"]


def test_nan_policy_zero_merges_all_the_same(house: House) -> None:
    house.register("a", draw(0))
    house.register("b", draw(1) | {"weight": np.full((4, 3), np.nan, np.float32)})

    job = house.finish("/v1/merges", average("a", "b", nan_policy="zero"))

    assert job["state"] == "succeeded"


# --- plans ------------------------------------------------------------------------------------------------------------


def test_a_plan_says_what_a_merge_would_do_and_stores_nothing(house: House) -> None:
    house.family()

    plan = house.made("/v1/plans", arithmetic("model-0", "model-1"))

    assert plan["is_runnable"]
    assert plan["problems"] == []
    assert plan["parameters"]["scaling_coefficient"] is not None
    assert plan["base_model"]["name"] == "base"
    assert [model["ref"] for model in plan["models"]] == ["model-0", "model-1"]
    assert (plan["n_tensors"], plan["n_merged_tensors"]) == (2, 2)
    assert plan["bytes_written"] >= 60
    assert plan["bytes_read"] >= 180
    assert plan["deduplicated_from"] is None
    assert house.read("/v1/jobs?kind=merge")["items"] == []


def test_a_plan_and_its_merge_have_one_recipe(house: House) -> None:
    house.family()
    body = average("model-0", "model-1")
    plan = house.made("/v1/plans", body)

    job = house.finish("/v1/merges", body)

    assert plan["recipe_digest"] == job["recipe_digest"]
    assert house.made("/v1/plans", body)["deduplicated_from"] == job["id"]


def test_a_plan_tells_other_tensors_as_a_problem(house: House) -> None:
    house.register("a", draw(0))
    house.register("b", draw(1, {"bias": (4,), "weight": (4, 3)}))

    plan = house.made("/v1/plans", average("a", "b"))

    assert not plan["is_runnable"]
    assert plan["problems"][0]["code"] == "incompatible_checkpoints"


def test_a_plan_refuses_what_a_merge_refuses(house: House) -> None:
    refused(house, average("nothing"), 422, "checkpoint_not_found", path="/v1/plans")
    refused(house, average("nothing") | {"method": "x"}, 422, "unknown_method", path="/v1/plans")


# --- planned before it is written -------------------------------------------------------------------------------------


def test_others_write_while_a_merge_is_planned(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.family()
    planned = plan_merge

    def plan_slowly(*arguments: Any, **options: Any) -> Any:
        body = {"uri": house.write(f"other-{len(calls)}", draw(7)), "name": "other"}
        calls.append(house.post("/v1/checkpoints", body).status_code)  # would wait for the lock, and time out
        return planned(*arguments, **options)

    calls: list[int] = []
    monkeypatch.setattr("app.services.merge_plans.plan_merge", plan_slowly)

    assert house.post("/v1/merges", average("model-0", "model-1")).status_code == 202
    assert calls == [202]


def test_what_changes_while_a_merge_is_planned_is_planned_again(
    any_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = any_house
    house.family()
    planned = plan_merge
    calls: list[str] = []

    def plan_meanwhile(*arguments: Any, **options: Any) -> Any:
        if not calls:
            calls.append(house.register("model-0", draw(8)))  # a new version of what the merge names
        return planned(*arguments, **options)

    monkeypatch.setattr("app.services.merge_plans.plan_merge", plan_meanwhile)

    job = house.made("/v1/merges", average("model-0", "model-1"))

    assert job["spec"]["models"][0]["checkpoint"] == calls[0]


def test_what_is_deleted_while_a_merge_is_planned_is_unknown(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.family()
    planned = plan_merge

    def plan_meanwhile(*arguments: Any, **options: Any) -> Any:
        house.client.delete("/v1/checkpoints/model-0")
        return planned(*arguments, **options)

    monkeypatch.setattr("app.services.merge_plans.plan_merge", plan_meanwhile)

    response = house.post("/v1/merges", average("model-0", "model-1"))

    assert (response.status_code, response.json()["code"]) == (422, "checkpoint_not_found")
