"""Adapters over HTTP: registered, merged in every space, refused with the reason, compared, evaluated."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from tests.app.api.house import Document, House
from tests.workers.peft_folders import RANK, Lora, draw_base, draw_modules, fuse, write_adapter

BASE = draw_base()


def register_family(house: House, n_adapters: int = 2) -> None:
    house.register("base", {name: tensor.numpy() for name, tensor in BASE.items()})
    for index in range(n_adapters):
        folder = house.data / f"adapter-{index}"
        write_adapter(folder, draw_modules(index))
        house.register_folder(f"adapter-{index}", folder, base_checkpoint="base")


def request(method: str, *models: str, **fields: Any) -> Document:
    return {"method": method, "base_model": "base", "models": [{"checkpoint": name} for name in models], **fields}


def weights_of(house: House, job: Document, file: str = "model.safetensors") -> dict[str, Any]:
    return load(house.get(f"/v1/artifacts/{job['result']['artifacts'][0]}/files/{file}").content)


def test_a_lora_folder_registers_as_an_adapter(house: House) -> None:
    register_family(house, 1)
    checkpoint = house.read("/v1/checkpoints/adapter-0")
    assert (checkpoint["kind"], checkpoint["state"]) == ("adapter", "ready")
    assert checkpoint["base_checkpoint"] == house.read("/v1/checkpoints/base")["id"]
    assert house.read("/v1/checkpoints", params={"kind": "adapter"})["items"][0]["id"] == checkpoint["id"]


def test_dora_leaves_the_checkpoint_invalid_with_the_reason(house: House) -> None:
    register_family(house, 0)
    folder = house.data / "dora"
    write_adapter(folder, draw_modules(0))
    config = (folder / "adapter_config.json").read_text().replace('"r":', '"use_dora": true, "r":')
    (folder / "adapter_config.json").write_text(config)
    house.register_folder("dora", folder, base_checkpoint="base")
    found = house.read("/v1/checkpoints/dora")
    assert found["state"] == "invalid"
    assert found["problem"]["code"] == "adapter_unsupported"
    assert "merge_and_unload" in found["problem"]["detail"]


def test_fusing_gives_the_dense_model(house: House) -> None:
    register_family(house, 1)
    job = house.finish("/v1/merges", request("lora_fuse", "adapter-0", output={"name": "fused"}))
    assert job["state"] == "succeeded", job["problem"]
    fused = house.read("/v1/checkpoints/fused")
    assert fused["kind"] == "dense"
    for name, array in weights_of(house, job).items():
        np.testing.assert_array_equal(array, fuse(BASE, draw_modules(0))[name].astype(np.float32))


def test_adapters_merge_beside_dense_models(house: House) -> None:
    register_family(house)
    dense = {name: (tensor + 0.5).numpy() for name, tensor in BASE.items()}
    house.register("dense", dense, base_checkpoint="base")
    body = request("task_arithmetic", "adapter-0", "dense", parameters={"scaling_coefficient": 0.5})
    job = house.finish("/v1/merges", body)
    assert job["state"] == "succeeded", job["problem"]
    for name, array in weights_of(house, job).items():
        start = BASE[name].double().numpy()
        expected = start + 0.5 * (fuse(BASE, draw_modules(0))[name] - start) + 0.25
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("space", "rank"), [("factors", RANK), ("concat", 2 * RANK)])
def test_the_space_is_named_in_request_recipe_and_result(space: str, rank: int, house: House) -> None:
    register_family(house)
    body = request("average", "adapter-0", "adapter-1", adapter_space=space, output={"name": "merged"})
    job = house.finish("/v1/merges", body)
    assert job["state"] == "succeeded", job["problem"]
    merged = house.read("/v1/checkpoints/merged")
    assert merged["kind"] == "adapter"
    assert merged["base_checkpoint"] == house.read("/v1/checkpoints/base")["id"]
    assert job["spec"]["recipe"]["adapter_space"] == space
    assert job["result"]["data"]["adapter_space"] == space
    assert set(job["result"]["data"]["ranks"].values()) == {rank}
    again = house.finish("/v1/merges", request("lora_fuse", "merged"))
    assert again["state"] == "succeeded", again["problem"]


def test_the_default_space_is_delta_and_stands_in_the_recipe(house: House) -> None:
    register_family(house)
    job = house.finish("/v1/merges", request("average", "adapter-0", "adapter-1"))
    assert job["spec"]["recipe"]["adapter_space"] == "delta"
    recipe = house.read(f"/v1/jobs/{job['id']}/recipe")
    repeated = house.finish("/v1/merges", recipe)
    assert repeated["deduplicated_from"] == job["id"]


def test_lorahub_sums_factors_unless_another_space_is_named(house: House) -> None:
    register_family(house)
    parameters = {"coefficients": {"*": [0.5, -1.0]}}
    body = request("lorahub", "adapter-0", "adapter-1", parameters=parameters, output={"name": "hub"})
    job = house.finish("/v1/merges", body)
    assert job["state"] == "succeeded", job["problem"]
    assert job["spec"]["recipe"]["adapter_space"] == "factors"
    assert house.read("/v1/checkpoints/hub")["kind"] == "adapter"
    first, second = draw_modules(0), draw_modules(1)
    summed = {
        name: Lora(0.5 * one.a - second[name].a, 0.5 * one.b - second[name].b, one.is_embedding)
        for name, one in first.items()
    }
    fused = house.finish("/v1/merges", request("lora_fuse", "hub"))
    for name, array in weights_of(house, fused).items():
        np.testing.assert_allclose(array, fuse(BASE, summed)[name], rtol=1e-5, atol=1e-6)


def test_some_modules_are_merged_with_other_parameters(house: House) -> None:
    register_family(house)
    inside = {"method": "task_arithmetic", "parameters": {"scaling_coefficient": 1.0}}
    changed = {"merge": {"parameters": {"scaling_coefficient": 0.0}}}
    body = request("knots", "adapter-0", "adapter-1", parameters={"merge": inside}, output={"name": "merged"})
    override = {"match": "*.dense.*", "parameters": changed, "weights": [2, None]}
    job = house.finish("/v1/merges", body | {"overrides": [override]})
    assert job["state"] == "succeeded", job["problem"]
    assert job["spec"]["recipe"]["overrides"][0]["parameters"] == changed
    groups = {group["n_tensors"]: group for group in job["result"]["data"]["groups"]}
    assert groups[1]["parameters"]["merge"]["parameters"]["scaling_coefficient"] == 0.0
    assert (groups[1]["weights"], groups[4]["weights"]) == ([2.0, 1.0], [1.0, 1.0])
    again = house.finish("/v1/merges", house.read(f"/v1/jobs/{job['id']}/recipe"))
    assert again["deduplicated_from"] == job["id"]
    fused = house.finish("/v1/merges", request("lora_fuse", "merged"))
    both = [fuse(BASE, draw_modules(index)) for index in range(2)]
    for name, array in weights_of(house, fused).items():
        start = BASE[name].double().numpy()
        added = 0 if name == "model.dense.weight" else sum(model[name] - start for model in both)
        np.testing.assert_allclose(array, start + added, rtol=1e-5, atol=1e-5)


def test_a_weight_that_the_method_inside_cannot_use_is_refused(house: House) -> None:
    register_family(house)
    body = request("knots", "adapter-0", "adapter-1", parameters={"merge": {"method": "sce"}})
    found = house.post("/v1/merges", body | {"overrides": [{"match": "*", "weights": [2, 1]}]})
    assert found.status_code == 422
    assert found.json()["errors"][0]["pointer"] == "/overrides/0/weights"


@pytest.mark.parametrize("method", ["knots", "core_space", "peft_combination"])
def test_methods_of_adapters_give_adapters(method: str, house: House) -> None:
    register_family(house)
    job = house.finish("/v1/merges", request(method, "adapter-0", "adapter-1", output={"name": "merged"}))
    assert job["state"] == "succeeded", job["problem"]
    assert house.read("/v1/checkpoints/merged")["kind"] == "adapter"
    files = {file["path"] for file in house.read(f"/v1/artifacts/{job['result']['artifacts'][0]}")["files"]}
    assert files == {"adapter_model.safetensors", "adapter_config.json", "README.md", "recipe.json"}


def test_an_adapter_is_extracted_from_a_dense_model(house: House) -> None:
    register_family(house, 0)
    house.register("dense", {name: (tensor + 0.5).numpy() for name, tensor in BASE.items()}, base_checkpoint="base")
    body = request("lora_extract", "dense", parameters={"rank": 1}, output={"name": "extracted"})
    job = house.finish("/v1/merges", body)
    assert job["state"] == "succeeded", job["problem"]
    assert house.read("/v1/checkpoints/extracted")["kind"] == "adapter"
    assert min(job["result"]["data"]["captured_energy"].values()) > 0.999  # adding one number everywhere is of rank 1


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        (request("average", "adapter-0", adapter_space="shared"), "/adapter_space", "not in 'shared'"),
        (request("ties", "adapter-0", "base", adapter_space="factors"), "/models/1/checkpoint", "must be an adapter"),
        (request("knots", "base"), "/models/0/checkpoint", "of kind dense; knots merges checkpoints of kind adapter"),
        (request("lora_fuse", "base"), "/models/0/checkpoint", "of kind dense"),
        (request("average", "base", adapter_space="delta"), "/adapter_space", "no model is an adapter"),
        (request("average", "adapter-0") | {"base_model": None}, "/base_model", "adapters lie on a base model"),
        (request("average", "adapter-0") | {"base_model": "adapter-0"}, "/base_model", "is of kind adapter"),
        (request("passthrough", "adapter-0"), "/models/0/checkpoint", "of kind adapter"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_its_place(
    body: Document, pointer: str, words: str, house: House
) -> None:
    register_family(house, 1)
    response = house.post("/v1/merges", body)
    assert response.status_code == 422
    faults = {fault["pointer"]: fault["message"] for fault in response.json()["errors"]}
    assert words in faults[pointer]


def test_an_adapter_of_another_base_is_refused(house: House) -> None:
    register_family(house, 1)
    house.register("other", {name: (tensor + 1).numpy() for name, tensor in BASE.items()})
    response = house.post("/v1/merges", request("average", "adapter-0") | {"base_model": "other"})
    assert response.status_code == 422
    assert "lies on base@1, and the base model is other@1" in response.json()["detail"]


def test_compatibility_sees_the_dense_model(house: House) -> None:
    register_family(house, 1)
    body = {"base_model": "base", "models": ["adapter-0"]}
    assert house.made("/v1/checkpoints/compatibility", body)["is_mergeable"] is True
    folder = house.data / "stray"
    write_adapter(folder, {"model.stray": Lora(torch.ones(RANK, 7), torch.ones(5, RANK))})
    house.register_folder("stray", folder)
    found = house.made("/v1/checkpoints/compatibility", body | {"models": ["adapter-0", "stray"]})
    assert found["is_mergeable"] is False
    assert found["differences"][0]["problem"] == "adapter"
    assert found["differences"][0]["model"] == 1
    assert "'model.stray'" in found["differences"][0]["found"]


def test_a_plan_of_adapters_reads_no_weight(house: House) -> None:
    register_family(house)
    plan = house.made("/v1/plans", request("knots", "adapter-0", "adapter-1"))
    assert plan["is_runnable"] is True
    assert plan["n_tensors"] == 10
    folder = house.data / "stray"
    write_adapter(folder, {"model.stray": Lora(torch.ones(RANK, 7), torch.ones(5, RANK))})
    house.register_folder("stray", folder)
    plan = house.made("/v1/plans", request("average", "adapter-0", "stray"))
    assert plan["is_runnable"] is False
    assert plan["problems"][0]["code"] == "incompatible_checkpoints"


def test_an_adapter_is_evaluated_as_the_model_it_makes(house: House, tmp_path: Path) -> None:
    house.bert("base")
    name = next(
        tensor["name"]
        for tensor in house.read("/v1/checkpoints/base/tensors")["items"]
        if tensor["name"].endswith("attention.self.query.weight")
    )
    width = next(
        tensor["shape"][0] for tensor in house.read("/v1/checkpoints/base/tensors")["items"] if tensor["name"] == name
    )
    module = name.removesuffix(".weight")
    generator = torch.Generator().manual_seed(0)
    lora = Lora(torch.randn(RANK, width, generator=generator), torch.randn(width, RANK, generator=generator))
    write_adapter(house.data / "adapter", {module: lora})
    house.register_folder("adapter", house.data / "adapter", base_checkpoint="base")
    house.register_folder("homeless", house.data / "adapter")
    house.made("/v1/tasks", house.task_body())
    house.finish("/v1/merges", request("lora_fuse", "adapter", output={"name": "fused"}))
    measured = {
        ref: house.finish("/v1/evaluations", {"checkpoint": ref, "tasks": ["kind"]}) for ref in ("adapter", "fused")
    }
    values = [job["result"]["metrics"][0]["value"] for job in measured.values()]
    assert values[0] == values[1]
    response = house.post("/v1/evaluations", {"checkpoint": "homeless", "tasks": ["kind"]})
    assert response.status_code == 422
    assert "adapter without a base_checkpoint" in response.json()["detail"]


def test_adapters_have_cosines(house: House) -> None:
    register_family(house)
    body = {"kind": "task_vector_cosines", "base_model": "base", "models": ["adapter-0", "adapter-1"]}
    job = house.finish("/v1/analyses", body)
    assert job["state"] == "succeeded", job["problem"]
    first, second = (
        np.concatenate(
            [(fuse(BASE, draw_modules(index))[name] - BASE[name].double().numpy()).flatten() for name in BASE]
        )
        for index in range(2)
    )
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert job["result"]["data"]["cosines"][0][1] == pytest.approx(cosine, abs=1e-4)
