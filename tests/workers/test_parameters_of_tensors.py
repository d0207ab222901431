"""Overrides and gradients, for every number that any method takes: each group is merged as it would be alone."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from app.domain.parameter_checks import number_of
from app.domain.recipes import Override
from tests.workers.memory import MemoryMerge
from tests.workers.multitask import merge_tasks
from workers.catalog import find_methods
from workers.contract import MergeMethod

CASES = [
    pytest.param(method, name, id=f"{method.card.name}-{name}")
    for method in find_methods()
    if method.card.data == "none"
    for name, rule in method.card.parameters["properties"].items()
    if number_of(rule) is not None
]
Models = Mapping[str, Tensor]


def _two_values(rule: Mapping[str, Any]) -> tuple[float, float]:
    """Return two values within the range of a parameter."""
    low = rule.get("minimum", rule.get("exclusiveMinimum", -1.0))
    high = rule.get("maximum", rule.get("exclusiveMaximum", low + 2.0))
    return low + 0.25 * (high - low), low + 0.75 * (high - low)


def _draw(n_models: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    shapes = {f"layers.{block}.{name}": shape for block in range(2) for name, shape in (("w", (6, 8)), ("b", (6,)))}
    return [{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(n_models)]


def _merge(merge: MemoryMerge, models: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the merged tensors; of a method with patches, those of each task beside them."""
    base, *others = models
    found = merge(base, others)
    if merge.method.patch is not None:
        for index, task in enumerate(merge_tasks(merge, base, others)):
            found |= {f"{name} of task {index}": tensor for name, tensor in task.items()}
    return found


@pytest.mark.parametrize(("method", "name"), CASES)
def test_a_group_is_merged_as_it_would_be_alone(method: MergeMethod, name: str) -> None:
    rule = number_of(method.card.parameters["properties"][name])
    assert rule is not None
    first, last = _two_values(rule)
    models = _draw(1 + min(max(2, method.card.min_models), method.card.max_models or 2))
    alone: dict[str, Tensor] = {}
    for block, value in enumerate((first, last)):
        of_block = [{key: model[key] for key in model if key.startswith(f"layers.{block}.")} for model in models]
        alone |= _merge(MemoryMerge(method, {name: value}), of_block)
    override = Override(match="layers.1.*", parameters={name: last})
    overridden = _merge(MemoryMerge(method, {name: first}, overrides=[override]), models)
    over_depth = _merge(MemoryMerge(method, {name: [first, last]}), models)
    for key, tensor in alone.items():
        assert torch.equal(overridden[key], tensor), key
        assert torch.equal(over_depth[key], tensor), key


def test_a_method_inside_has_other_parameters_for_some_tensors() -> None:
    method = next(one for one in find_methods() if one.card.name == "peru_fft")
    models = _draw(3)
    shared = {"method": "task_arithmetic", "parameters": {"scaling_coefficient": 0.5}, "version": None}
    last: dict[str, Any] = {"shared": {"parameters": {"scaling_coefficient": 2.0}}}
    found = MemoryMerge(method, {"shared": shared}, overrides=[Override(match="layers.1.*", parameters=last)])
    over_depth = MemoryMerge(method, {"shared": {**shared, "parameters": {"scaling_coefficient": [0.5, 2.0]}}})
    base, *others = models
    for name, tensor in found(base, others).items():
        scale = 2.0 if name.startswith("layers.1") else 0.5
        expected = base[name] + scale * sum(other[name] - base[name] for other in others)
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(over_depth(base, others)[name], tensor)
