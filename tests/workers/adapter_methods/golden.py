"""The worked examples of adapter methods' pages: one module, small whole numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from app.domain.catalog import load_catalog
from app.domain.recipes import PinnedCheckpoint, Recipe, RecipeModel
from workers.adapter_contract import AdapterContext, AdapterMethod, Change, DenseChange, ModuleUpdates, Update
from workers.catalog import load_adapter_recipe
from workers.pipelines.adapter_program import merge_modules

Matrix = Sequence[Sequence[float]]


def merge_adapter_example(example: Mapping[str, Any]) -> list[list[float]]:
    """Return the merged update of a page's example, rounded to six places."""
    weights = example.get("weights", [1.0] * len(example["adapters"]))
    _, parameters = load_catalog().check(example["method"], example["parameters"], has_base_model=True, weights=weights)
    pins = [PinnedCheckpoint(content_digest=str(index), weights_digest=str(index)) for index in range(len(weights))]
    recipe = Recipe(
        method=example["method"],
        method_version=1,
        models=tuple(RecipeModel(**pin.model_dump(), weight=weight) for pin, weight in zip(pins, weights, strict=True)),
        parameters=parameters,
        shard_bytes=1 << 30,
        adapter_space=example.get("space"),
    )
    code = load_adapter_recipe(recipe)
    if "change" in example["adapters"][0]:
        return _extract(code.method, parameters, example["adapters"][0]["change"])
    updates = tuple(_read(one) for one in example["adapters"])
    module = ModuleUpdates("w", "linear", len(updates[0].b), updates[0].a.shape[1], updates)
    result = merge_modules(code, recipe, [module]).updates["w"]
    return _round(result.b.double() @ result.a.double())


def _extract(method: Any, parameters: Mapping[str, Any], change: Matrix) -> list[list[float]]:
    assert isinstance(method, AdapterMethod)
    context = AdapterContext((1.0,), 0, ("0",), lambda _: {})
    read = DenseChange("w", lambda: Change(torch.tensor(change, dtype=torch.float64)))
    result = method.merge([read], method.parameters.model_validate(parameters), context)["w"]
    return _round(result.b @ result.a)


def _read(one: Mapping[str, Any]) -> Update:
    factors = {name: torch.tensor(one[name], dtype=torch.float32) for name in ("a", "b")}
    starts = {name: torch.tensor(one[name], dtype=torch.float32) for name in ("a_start", "b_start") if name in one}
    return Update(**factors, scaling=one.get("scaling", 1.0), **starts)


def _round(update: Tensor) -> list[list[float]]:
    return [[round(value, 6) + 0.0 for value in row] for row in update.tolist()]
