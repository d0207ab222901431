"""Linearized LoRA: merge adapters that were trained as first-order Taylor expansions, over φ − φ₀, and fold the result.

Source: Tang et al. 2023, arXiv:2310.04742 (partial linearization).
Departs from source: where B₀ is zero, A has no influence and is left out (docs/methods/linearized_lora.md).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from app.domain.errors import IncompatibleCheckpoints, InvalidParameters
from app.domain.parameters import NestedMethod, Parameters
from workers.adapter_contract import AdapterContext, ModuleUpdates, Update, adapter_method
from workers.numerics import updates
from workers.patches import LowRank

DEFAULT = NestedMethod(method="task_arithmetic")


class LinearizedLoraParameters(Parameters):
    """Parameters of `linearized_lora`."""

    merge: Annotated[NestedMethod, Field(description="The method that merges the changes of the factors.")] = DEFAULT
    space: Annotated[
        Literal["factors", "dense_space"],
        Field(
            description="factors: merge φ − φ₀; all adapters must begin at one φ₀. dense_space: add up what they do "
            "to the weights, wherever each began; `merge` must be a linear combination."
        ),
    ] = "factors"


@adapter_method(
    name="linearized_lora",
    title="Linearized LoRA (L-LoRA)",
    summary="Merges linearized adapters over the change from their common start; folds exactly into a plain LoRA.",
    source="Tang et al. 2023, arXiv:2310.04742",
    aliases=("l_lora", "partial_linearization"),
    parameters=LinearizedLoraParameters,
    adapter_spaces=("factors", "delta"),
    neutral_parameters={"merge": {"method": "task_arithmetic", "parameters": {"scaling_coefficient": 1.0}}},
    nested={"merge": "local"},
)
def merge(
    modules: Sequence[ModuleUpdates], parameters: LinearizedLoraParameters, context: AdapterContext
) -> Mapping[str, LowRank]:
    """Return s (B·A₀ + B₀·(A − A₀)) with A − A₀ and B − B₀ merged by the method inside."""
    for module in modules:
        _check_linearized(module)
    if parameters.space == "dense_space":
        return _add_up(modules, context)
    for module in modules:
        _check_one_start(module)
    changes: list[dict[str, Tensor]] = [{} for _ in context.weights]
    for module in context.each(modules):
        for change, update in zip(changes, module.updates, strict=True):
            if update is not None:
                change |= _changes(module, update)
    merged = context.merge(changes)
    return {module.name: _fold(module, merged) for module in modules}


def _add_up(modules: Sequence[ModuleUpdates], context: AdapterContext) -> dict[str, LowRank]:
    if context.coefficients is None:
        raise InvalidParameters(
            "linearized_lora: in dense_space the method in `merge` must be a linear combination (average, "
            "task_arithmetic). For any other, run it by itself on the adapters in the space 'delta'."
        )
    return {module.name: updates.stack(module, context.coefficients) for module in context.each(modules)}


def _changes(module: ModuleUpdates, update: Update) -> dict[str, Tensor]:
    a_start, b_start = _start(update)
    changes = {f"{module.name}.lora_B": update.b.double() - b_start.double()}
    if b_start.any():
        changes[f"{module.name}.lora_A"] = update.a.double() - a_start.double()
    return changes


def _fold(module: ModuleUpdates, merged: Mapping[str, Tensor]) -> LowRank:
    """Return the expansion around the start as one product: of rank r where B₀ is zero, else of rank 2r."""
    first = _first(module)
    a_start, b_start = (factor.double() for factor in _start(first))
    b = b_start + merged[f"{module.name}.lora_B"].double()
    change = merged.get(f"{module.name}.lora_A")
    if change is None:
        return LowRank(a=a_start, b=first.scaling * b)
    return LowRank(a=torch.cat([a_start, change.double()]), b=first.scaling * torch.cat([b, b_start], dim=1))


def _check_linearized(module: ModuleUpdates) -> None:
    if any(update is not None and update.a_start is None for update in module.updates):
        raise IncompatibleCheckpoints(
            f"An adapter's update of {module.name!r} has no start (params0), expected linearized adapters. Merge plain "
            "LoRA adapters with another method, in the space 'delta'."
        )


def _check_one_start(module: ModuleUpdates) -> None:
    first = _first(module)
    for index, update in enumerate(module.updates):
        is_other = update is None or update.scaling != first.scaling
        if update is None or is_other or not all(map(_is_equal, _start(update), _start(first))):
            raise IncompatibleCheckpoints(
                f"models[{index}] does not begin at the same φ₀ as the others in {module.name!r}, so changes from it "
                "cannot be compared. Train all adapters from one start, or merge what they do to the weights: space "
                "'dense_space'."
            )


def _is_equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(one, other))


def _first(module: ModuleUpdates) -> Update:
    return next(update for update in module.updates if update is not None)


def _start(update: Update) -> tuple[Tensor, Tensor]:
    if update.a_start is None or update.b_start is None:
        raise TypeError("a linearized update has a start")
    return update.a_start, update.b_start
