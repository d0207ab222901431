"""Merges over HTTP whose recipes have parts: overrides, lists over the depth, transforms, nested methods."""

from typing import Any

import numpy as np
import pytest

from tests.app.api.house import Document, House
from tests.app.api.test_merges import refused, weights_of


def arithmetic(**fields: Any) -> Document:
    models = [{"checkpoint": "model-0"}, {"checkpoint": "model-1"}]
    return {"method": "task_arithmetic", "base_model": "base", "models": models, **fields}


def test_an_override_changes_the_tensors_it_matches_and_no_others(house: House) -> None:
    house.family()
    plain = weights_of(house, house.finish("/v1/merges", arithmetic()))
    name = sorted(plain)[0]
    override = {"match": name, "parameters": {"scaling_coefficient": 0.0}}

    job = house.finish("/v1/merges", arithmetic(overrides=[override]))

    merged, base = weights_of(house, job), weights_of_base(house)
    np.testing.assert_array_equal(merged[name], base[name])
    for other in sorted(plain)[1:]:
        np.testing.assert_array_equal(merged[other], plain[other])


def weights_of_base(house: House) -> dict[str, Any]:
    return weights_of(house, house.finish("/v1/merges", arithmetic(parameters={"scaling_coefficient": 0.0})))


def test_the_result_says_which_parameters_held_for_which_tensors(house: House) -> None:
    house.family()
    body = arithmetic(overrides=[{"match": "*", "parameters": {"scaling_coefficient": 0.5}, "weights": [1, 2]}])

    data = house.finish("/v1/merges", body)["result"]["data"]
    assert "groups" not in data  # one group: all tensors alike

    names = [tensor["name"] for tensor in house.read("/v1/checkpoints/base/tensors")["items"]]
    body["overrides"][0]["match"] = names[0]
    groups = house.finish("/v1/merges", body)["result"]["data"]["groups"]
    held = {
        name: (group["parameters"]["scaling_coefficient"], group["weights"])
        for group in groups
        for name in group["tensors"]
    }
    assert held[names[0]] == (0.5, [1.0, 2.0])
    assert held[names[1]] == (0.3, [1.0, 1.0])


def test_models_have_parameters_of_their_own_everywhere_and_in_overrides(house: House) -> None:
    house.family()
    name = house.read("/v1/checkpoints/base/tensors")["items"][0]["name"]
    body = arithmetic(method="ties", overrides=[{"match": name, "models": [None, {"density": 1}]}])
    body["models"][0]["parameters"] = {"density": 0.5}

    job = house.finish("/v1/merges", body)

    groups = job["result"]["data"]["groups"]
    densities = {name: [one["density"] for one in group["models"]] for group in groups for name in group["tensors"]}
    assert densities.pop(name) == [0.5, 1.0]
    assert list(densities.values()) == [[0.5, 0.2]]
    recipe = house.read(f"/v1/jobs/{job['id']}/recipe")
    assert recipe["models"][0]["parameters"] == {"density": 0.5}
    again = house.finish("/v1/merges", recipe)
    assert again["deduplicated_from"] == job["id"]
    card = house.get(f"/v1/artifacts/{job['result']['artifacts'][0]}/files/README.md").text
    assert "Parameters of their own" in card


@pytest.mark.parametrize(
    ("override", "pointer"),
    [
        ({"models": [{"density": 0.5}]}, "/overrides/0/models"),
        ({"models": [None, {"reduce": "sum"}]}, "/overrides/0/models/1/reduce"),
        ({"models": [None, {"density": 2}]}, "/overrides/0/models/1/density"),
    ],
)
def test_faults_of_what_an_override_says_of_one_model_are_named(house: House, override: Document, pointer: str) -> None:
    house.family()
    body = arithmetic(method="ties", overrides=[{"match": "*", **override}])
    errors = house.post("/v1/merges", body).json()["errors"]
    assert [error["pointer"] for error in errors] == [pointer]


def test_a_transform_is_run_reported_and_in_the_recipe(house: House) -> None:
    house.family()

    job = house.finish("/v1/merges", arithmetic(transforms=[{"name": "awd", "parameters": {"steps": 50}}]))

    found = job["result"]["data"]["found"]["awd.redundancy"]
    assert len(found["coefficients"]) == 2
    recipe = house.read(f"/v1/jobs/{job['id']}/recipe")
    assert recipe["transforms"][0] == {
        "name": "awd",
        "version": 1,
        "parameters": {"learning_rate": 0.01, "norm_penalty": 0.1, "normalize": True, "scope": "global", "steps": 50},
    }
    again = house.made("/v1/merges", recipe | {"output": {"name": "again"}})
    assert again["deduplicated_from"] == job["id"]


def test_a_plan_counts_the_passes_of_the_parts(house: House) -> None:
    house.family()
    plain = house.made("/v1/plans", arithmetic())
    with_awd = house.made("/v1/plans", arithmetic(transforms=[{"name": "awd"}]))
    assert (plain["n_passes"], with_awd["n_passes"]) == (1, 2)


@pytest.mark.parametrize(
    ("fields", "code", "pointer"),
    [
        ({"overrides": [{"match": "*.nothing"}]}, "validation_failed", "/overrides/0/match"),
        (
            {"overrides": [{"match": "*", "parameters": {"scale": 1}}]},
            "invalid_parameters",
            "/overrides/0/parameters/scale",
        ),
        ({"overrides": [{"match": "*", "weights": [1.0]}]}, "validation_failed", "/overrides/0/weights"),
        ({"overrides": [{"match": "*", "weigths": [1.0, 1.0]}]}, "validation_failed", "/overrides/0/weigths"),
        ({"transforms": [{"name": "adw"}]}, "validation_failed", "/transforms/0/name"),
        (
            {"transforms": [{"name": "awd", "parameters": {"steps": -1}}]},
            "invalid_parameters",
            "/transforms/0/parameters/steps",
        ),
        ({"transforms": [{"name": "awd", "version": 9}]}, "validation_failed", "/transforms/0/version"),
        ({"post_steps": [{"name": "awd"}]}, "validation_failed", "/post_steps/0/name"),
        ({"parameters": {"scaling_coefficient": [0.1, 0.2]}}, "validation_failed", "/parameters"),
    ],
)
def test_faults_of_the_parts_are_named_where_they_are(house: House, fields: Document, code: str, pointer: str) -> None:
    house.family()
    problem = refused(house, arithmetic(**fields), 422, code)
    assert problem["errors"][0]["pointer"] == pointer


def test_a_step_needs_a_base_model(house: House) -> None:
    house.family()
    body = {"method": "average", "models": [{"checkpoint": "model-0"}], "transforms": [{"name": "awd"}]}
    assert refused(house, body, 422, "validation_failed")["errors"][0]["pointer"] == "/base_model"


def test_transforms_and_post_steps_are_listed(house: House) -> None:
    assert [card["name"] for card in house.read("/v1/transforms")["items"]] == ["awd", "ties"]
    assert [card["name"] for card in house.read("/v1/post_steps")["items"]] == ["lines", "svc"]
