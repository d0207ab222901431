"""Merges as mergekit writes them, over HTTP: in, planned, out again, and refused with their lines."""

from textwrap import dedent
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from tests.app.api.house import Document, House, draw
from tests.app.api.test_merges import weights_of

LINEAR = """
    merge_method: linear
    models:
      - {model: model-0, parameters: {weight: 1}}
      - {model: model-1, parameters: {weight: 3}}
    amalgam: {output: {name: mixed, tags: {team: x}}}
"""


def send(house: House, text: str, path: str = "/v1/merges", **headers: str) -> httpx.Response:
    headers = {"Content-Type": "application/yaml", **headers}
    response: httpx.Response = house.client.post(path, content=dedent(text).encode(), headers=headers)  # type: ignore[assignment]
    return response


def problem_of(response: httpx.Response, status: int, code: str) -> Document:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: Document = response.json()
    assert document["code"] == code, document
    return document


@pytest.mark.parametrize("kind", ["application/yaml", "application/yaml; charset=utf-8", "text/yaml"])
def test_a_yaml_merge_is_the_merge_that_json_asks_for(house: House, kind: str) -> None:
    house.family()

    job = send(house, LINEAR, **{"Content-Type": kind})

    assert job.status_code == 202, job.text
    assert job.headers["location"] == f"/v1/jobs/{job.json()['id']}"
    house.work()
    done = house.read(f"/v1/jobs/{job.json()['id']}")
    base, first, second = draw(0), draw(1), draw(2)
    for name, found in weights_of(house, done).items():
        np.testing.assert_allclose(found, base[name] + first[name] / 4 + second[name] * 3 / 4, rtol=1e-5)
    assert house.read("/v1/checkpoints/mixed@1")["tags"] == {"team": "x"}
    models = [{"checkpoint": "model-0", "weight": 1}, {"checkpoint": "model-1", "weight": 3}]
    again = house.made("/v1/plans", {"method": "average", "models": models})
    assert again["deduplicated_from"] == done["id"]


def test_a_yaml_plan_says_what_the_merge_would_do(house: House) -> None:
    house.family()

    plan = send(house, LINEAR, "/v1/plans")

    assert plan.status_code == 200
    assert (plan.json()["method"], plan.json()["is_runnable"]) == ("average", True)


def test_a_recipe_goes_out_as_yaml_and_comes_back_as_the_same_recipe(house: House) -> None:
    house.family()
    job = house.finish(
        "/v1/merges",
        {
            "method": "ties",
            "base_model": "base",
            "models": [{"checkpoint": "model-0"}, {"checkpoint": "model-1", "weight": 0.5}],
            "parameters": {"density": 0.5, "trim_scope": "tensor", "vote": "weighted", "zero_vote": "positive"},
            "overrides": [{"match": "*eigh*", "parameters": {"density": 0.25}, "weights": [1.0, 2.0]}],
            "output": {"dtype": "float16"},
        },
    )
    assert job["state"] == "succeeded", job["problem"]

    response = house.get(f"/v1/jobs/{job['id']}/recipe?format=mergekit")

    assert response.headers["content-type"] == "application/yaml"
    document: Any = yaml.safe_load(response.text)
    assert (document["merge_method"], document["parameters"]["density"]) == (
        "ties",
        [{"filter": "eigh", "value": 0.25}, {"value": 0.5}],
    )
    again = send(house, response.text)
    assert again.json()["recipe_digest"] == job["recipe_digest"]
    assert again.json()["deduplicated_from"] == job["id"]


def test_a_recipe_that_mergekit_cannot_say_is_not_acceptable(house: House) -> None:
    house.family()
    body = {"method": "ties", "base_model": "base", "models": [{"checkpoint": "model-0"}]}
    job = house.made("/v1/merges", body)

    problem = problem_of(house.get(f"/v1/jobs/{job['id']}/recipe?format=mergekit"), 406, "not_acceptable")

    assert {fault["pointer"] for fault in problem["errors"]} == {
        "/parameters/trim_scope", "/parameters/vote", "/parameters/zero_vote",
    }  # fmt: skip
    assert house.read(f"/v1/jobs/{job['id']}/recipe?format=json")["method"] == "ties"
    problem_of(house.get(f"/v1/jobs/{job['id']}/recipe?format=toml"), 422, "validation_failed")


# --- refused ------------------------------------------------------------------------------------------------------


def test_what_the_document_gets_wrong_is_named_with_its_line(house: House) -> None:
    problem = problem_of(send(house, LINEAR.replace("weight: 3", "wieght: 3")), 422, "validation_failed")

    fault = problem["errors"][0]
    assert (fault["pointer"], fault["did_you_mean"]) == ("/models/1/parameters/wieght", "weight")
    assert fault["message"].startswith("line 5: ")


@pytest.mark.parametrize(
    ("change", "status", "code", "pointer"),
    [
        (("model-1", "nobody"), 422, "checkpoint_not_found", "/models/1/model"),
        (("model-1", "no body"), 422, "validation_failed", "/models/1/model"),
        (("weight: 3", "weight: 1e9"), 422, "validation_failed", "/models/1/parameters/weight"),
        (("weight: 3", "weight: [{filter: nothing, value: 1}, {value: 2}]"), 422, "validation_failed",
         "/models/1/parameters/weight/0"),
        (("name: mixed", "name: job_x"), 422, "validation_failed", "/amalgam/output"),
    ],
)  # fmt: skip
def test_what_the_request_gets_wrong_is_placed_in_the_document(
    house: House, change: tuple[str, str], status: int, code: str, pointer: str
) -> None:
    house.family()

    problem = problem_of(send(house, LINEAR.replace(*change)), status, code)

    assert problem["errors"][0]["pointer"].startswith(pointer), problem
    assert problem["errors"][0]["message"].startswith("line "), problem


def test_what_is_no_yaml_is_a_malformed_request(house: House) -> None:
    assert "line 2" in problem_of(send(house, "a: 1\na: 2"), 400, "malformed_request")["detail"]
    problem_of(send(house, ""), 400, "malformed_request")
    problem_of(send(house, "[" * 5000), 400, "malformed_request")
    problem_of(send(house, "a: .nan"), 422, "validation_failed")
    problem_of(send(house, "a" * (2**20 + 1)), 413, "body_too_large")


def test_an_unknown_method_has_its_near_match(house: House) -> None:
    problem = problem_of(send(house, LINEAR.replace("linear", "linea")), 422, "unknown_method")

    assert problem["errors"][0]["did_you_mean"] == "linear"


def test_other_paths_read_no_yaml_and_say_so(house: House) -> None:
    problem = problem_of(send(house, "a: b", "/v1/evaluations"), 415, "unsupported_media_type")
    assert "reads application/json." in problem["detail"]
    problem = problem_of(send(house, "a: b", **{"Content-Type": "text/plain"}), 415, "unsupported_media_type")
    assert "reads application/json and application/yaml." in problem["detail"]


def test_a_key_for_idempotency_covers_the_document(house: House) -> None:
    house.family()
    first = send(house, LINEAR, **{"Idempotency-Key": "k1"})

    again = send(house, LINEAR + "\n    # a comment", **{"Idempotency-Key": "k1"})
    other = send(house, LINEAR.replace("weight: 3", "weight: 2"), **{"Idempotency-Key": "k1"})

    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"
    problem_of(other, 409, "idempotency_key_reused")


# --- depth --------------------------------------------------------------------------------------------------------


def blocks(n_blocks: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (5, 3), "norm.weight": (3,)}
    return shapes | {f"layers.{n}.{part}.weight": (3, 3) for n in range(n_blocks) for part in ("attn", "mlp")}


def register_deep(house: House, n_blocks: int, n_models: int = 2) -> None:
    for index in range(n_models):
        house.register(f"model-{index}", draw(index, blocks(n_blocks)))


def test_a_slice_over_all_layers_must_hold_all_layers(house: House) -> None:
    register_deep(house, 4)
    text = """
        merge_method: linear
        slices: [{sources: [{model: model-0, layer_range: [0, N]}, {model: model-1, layer_range: [0, N]}]}]
        parameters: {weight: 1}
    """

    assert send(house, text.replace("N", "4")).status_code == 202
    problem = problem_of(send(house, text.replace("N", "3")), 422, "incompatible_checkpoints")

    assert "has 4 blocks, expected n_blocks = 3" in problem["detail"]


def test_a_list_is_interpolated_over_the_layers(house: House) -> None:
    register_deep(house, 3)
    text = "{merge_method: slerp, base_model: model-0, models: [{model: model-1}], parameters: {t: [0, 1]}}"

    job = send(house, text).json()
    house.work()

    merged = weights_of(house, house.read(f"/v1/jobs/{job['id']}"))
    first, second = draw(0, blocks(3)), draw(1, blocks(3))
    for name in ("embed.weight", "norm.weight", "layers.0.mlp.weight"):  # outside of the layers: the first number
        np.testing.assert_array_equal(merged[name], first[name])
    np.testing.assert_array_equal(merged["layers.2.attn.weight"], second["layers.2.attn.weight"])


def test_slices_of_layers_are_put_together(house: House) -> None:
    register_deep(house, 4)
    text = """
        merge_method: passthrough
        slices:
          - sources: [{model: model-0, layer_range: [0, 3]}]
          - sources: [{model: model-1, layer_range: [2, 4], parameters: {scale: [{filter: mlp, value: 0}]}}]
    """

    job = send(house, text).json()
    house.work()

    done = house.read(f"/v1/jobs/{job['id']}")
    assert done["state"] == "succeeded", done["problem"]
    merged = weights_of(house, done)
    first, second = draw(0, blocks(4)), draw(1, blocks(4))
    assert sorted(merged) == sorted(blocks(5))
    np.testing.assert_array_equal(merged["layers.3.attn.weight"], second["layers.2.attn.weight"])
    np.testing.assert_array_equal(merged["layers.4.mlp.weight"], 0 * second["layers.3.mlp.weight"])
    np.testing.assert_array_equal(merged["embed.weight"], first["embed.weight"])
    np.testing.assert_array_equal(merged["norm.weight"], second["norm.weight"])
    assert (
        send(house, house.get(f"/v1/jobs/{job['id']}/recipe?format=mergekit").text).json()["recipe_digest"]
        == (job["recipe_digest"])
    )


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"exclude": ["norm.weight"]}, "/exclude"),
        ({"parameters": {"slices": [{"sources": [{"model": 3, "layer_range": [0, 1]}]}]}},
         "/parameters/slices/0/sources/0/model"),
        ({"parameters": {"slices": [{"sources": [{"model": "model-9", "layer_range": [0, 1]}]}]}},
         "/parameters/slices/0/sources/0/model"),
        ({"parameters": {"slices": [{"sources": [{"model": 0, "layer_range": [0]}]}]}},
         "/parameters/slices/0/sources/0/layer_range"),
        ({"parameters": {"slices": [{"sources": [{"model": 0, "layer_rnge": [0, 1]}]}]}},
         "/parameters/slices/0/sources/0/layer_rnge"),
        ({"parameters": {"slices": [{"sources": [{"model": "model-0", "layer_range": [2, 9]}]}]}},
         "/parameters/slices/0/sources/0/layer_range"),
    ],
)  # fmt: skip
def test_slices_that_do_not_hold_are_refused(house: House, body: Document, pointer: str) -> None:
    register_deep(house, 4)

    response = house.post("/v1/merges", {"method": "passthrough", "models": [{"checkpoint": "model-0"}], **body})

    assert response.status_code == 422, response.text
    assert pointer in {fault["pointer"] for fault in response.json()["errors"]}, response.text
