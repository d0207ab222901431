"""The laws that hold for every method of adapters, in memory: T3, the order of adapters, and T8, their scale."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from app.domain.catalog import load_catalog
from app.domain.recipes import Override, Recipe, RecipeModel
from workers.adapter_contract import ModuleUpdates, Update
from workers.adapter_methods.peft_combination import CombinationType
from workers.catalog import load_adapter_recipe
from workers.pipelines.adapter_program import merge_modules

N_MODELS = 4
WEIGHTS = (1.0, 0.5, 2.0, 0.25)
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ("knots", "core_space", "linearized_lora")),
    ("linearized_lora", {"space": "dense_space"}),
    *(("peft_combination", {"combination_type": kind}) for kind in get_args(CombinationType)),
]
every_method = pytest.mark.parametrize(
    ("method", "parameters"), CASES, ids=lambda value: value if isinstance(value, str) else "-".join(value.values())
)


def _draw(method: str, factor: float = 1.0) -> list[ModuleUpdates]:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    modules: list[ModuleUpdates] = []
    for name, n_out, n_in in (("layers.0.w", 7, 9), ("layers.1.w", 8, 5)):
        start = (draw(2, n_in), draw(n_out, 2)) if method == "linearized_lora" else (None, None)
        updates = tuple(Update(draw(2, n_in), draw(n_out, 2), 0.5 * factor, *start) for _ in range(N_MODELS))
        modules.append(ModuleUpdates(name, "linear", n_out, n_in, updates))
    return modules


def _merge(
    method: str,
    parameters: dict[str, Any],
    modules: Sequence[ModuleUpdates],
    order: Sequence[int] = range(N_MODELS),
    **changes: Any,
) -> dict[str, Tensor]:
    """Return the merged updates, float64, of the adapters in some order. changes: of the recipe."""
    weights = [WEIGHTS[index] for index in order]
    card, effective = load_catalog().check(method, parameters, has_base_model=True, weights=weights)
    models = tuple(
        RecipeModel(content_digest=f"{index}", weights_digest=f"{index}", weight=WEIGHTS[index]) for index in order
    )
    recipe = Recipe(
        method=card.name, method_version=1, models=models, parameters=effective, shard_bytes=1 << 30, **changes
    )
    shuffled = [replace(module, updates=tuple(module.updates[index] for index in order)) for module in modules]
    merged = merge_modules(load_adapter_recipe(recipe), recipe, shuffled).updates
    return {name: found.b.double() @ found.a.double() for name, found in merged.items()}


@every_method
@pytest.mark.parametrize("order", [(3, 2, 1, 0), (1, 3, 0, 2)])
def test_t3_the_order_of_adapters_does_not_matter(
    method: str, parameters: dict[str, Any], order: tuple[int, ...]
) -> None:
    modules = _draw(method)
    forward, shuffled = _merge(method, parameters, modules), _merge(method, parameters, modules, order)
    for name, update in forward.items():
        torch.testing.assert_close(shuffled[name], update, rtol=1e-5, atol=1e-5)


@every_method
@pytest.mark.parametrize("exponent", [-3, 2])
def test_t8_scaled_updates_give_a_scaled_update(method: str, parameters: dict[str, Any], exponent: int) -> None:
    factor = 2.0**exponent
    once, then = (_merge(method, parameters, _draw(method, by)) for by in (1.0, factor))
    for name, update in once.items():
        torch.testing.assert_close(then[name], factor * update, rtol=1e-4, atol=1e-5)


@every_method
def test_a_group_of_modules_is_merged_as_it_would_be_alone(method: str, parameters: dict[str, Any]) -> None:
    modules = _draw(method)
    card = load_catalog().method(method)
    inside = {"merge": {"method": "task_arithmetic", "parameters": {"scaling_coefficient": [0.5, 2.0]}}}
    parameters = {**parameters, **(inside if card.nested else {})}
    weights = (0.5, -1.0, 1.0, 0.0)
    override = Override(match="layers.1.*", weights=weights)
    together = _merge(method, parameters, modules, overrides=(override,))
    for depth, scale, module in zip((0, 1), (0.5, 2.0), modules, strict=True):
        own = {**parameters, **(_with_scale(scale) if card.nested else {})}
        overrides = (Override(match="*", weights=weights),) if depth else ()
        assert torch.equal(_merge(method, own, [module], overrides=overrides)[module.name], together[module.name])


def _with_scale(scale: float) -> dict[str, Any]:
    return {"merge": {"method": "task_arithmetic", "parameters": {"scaling_coefficient": scale}}}


def test_every_method_of_adapters_is_here() -> None:
    made_of_adapters = {one.name for one in load_catalog().methods if one.produces == "adapter"}
    assert {method for method, _ in CASES} == made_of_adapters - {"lora_extract"}  # which takes one model
