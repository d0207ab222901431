"""Combinations of adapters as PEFT's `add_weighted_adapter` makes them, type by type.

Source: PEFT 0.21, `add_weighted_adapter`; Yadav et al. 2023, arXiv:2306.01708; Yu et al. 2023, arXiv:2311.03099.
Departs from source: pruned entries of equal magnitude are told apart by position, random ones drawn by position.
"""

from collections.abc import Callable, Mapping, Sequence
from math import copysign, sqrt
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from app.domain.errors import IncompatibleCheckpoints
from app.domain.parameters import Density, Parameters
from workers.adapter_contract import AdapterContext, ModuleUpdates, Update, adapter_method
from workers.contract import MergeContext
from workers.numerics import low_rank, randomness, sparsify, thin_products, updates
from workers.patches import LowRank

CombinationType = Literal[
    "svd", "linear", "cat", "ties", "ties_svd", "dare_ties", "dare_linear", "dare_ties_svd", "dare_linear_svd",
    "magnitude_prune", "magnitude_prune_svd",
]  # fmt: skip


class PeftCombinationParameters(Parameters):
    """Parameters of `peft_combination`."""

    combination_type: Annotated[
        CombinationType,
        Field(
            description="cat: exact, stacked ranks; svd and …_svd: of the updates, cut to a rank; all others act on "
            "the factors A and B apart, so products of different adapters' factors come in."
        ),
    ] = "svd"
    rank: Annotated[
        int | None,
        Field(ge=1, le=4096, description="Rank of the result of svd and …_svd; null: the adapters' largest."),
    ] = None
    density: Density = 0.5
    majority_sign_method: Annotated[
        Literal["total", "frequency"], Field(description="ties: elect signs by magnitudes, or by counting.")
    ] = "total"


Combine = Callable[[str, Sequence[Tensor], Sequence[float]], Tensor]  # (purpose, tensors, weights) -> tensor


@adapter_method(
    name="peft_combination",
    title="PEFT's weighted adapter",
    summary="Combines adapters as PEFT's add_weighted_adapter does: svd, linear, cat, ties, dare and magnitude "
    "pruning.",
    source="PEFT 0.21, add_weighted_adapter",
    aliases=("add_weighted_adapter",),
    parameters=PeftCombinationParameters,
    adapter_spaces=("delta", "factors", "concat"),
    is_random=True,
    neutral_parameters={"combination_type": "cat"},
)
def merge(
    modules: Sequence[ModuleUpdates], parameters: PeftCombinationParameters, context: AdapterContext
) -> Mapping[str, LowRank]:
    """Return the combination of each module's updates."""
    if parameters.combination_type == "cat":
        return {module.name: updates.stack(module, context.weights) for module in context.each(modules)}
    rank = parameters.rank or max(len(one.a) for module in modules for one in module.updates if one is not None)
    return {module.name: _combine(module, parameters, context, rank) for module in context.each(modules)}


def _combine(
    module: ModuleUpdates, parameters: PeftCombinationParameters, context: AdapterContext, rank: int
) -> LowRank:
    kind = parameters.combination_type
    if kind == "svd":
        whole = updates.stack(module, context.weights)
        return LowRank(*thin_products.truncate(whole.a, whole.b, rank))
    present = [index for index, update in enumerate(module.updates) if update is not None]
    combine = _combination(module.name, present, parameters, context)
    weights = [context.weights[index] for index in present]
    if kind.endswith("_svd"):
        dense = [b @ a for a, b in (updates.factors(update) for update in module.updates if update is not None)]
        return low_rank.truncate(combine("delta", dense, weights).double(), rank=rank)
    return _combine_factors(module, [update for update in module.updates if update is not None], weights, combine)


def _combine_factors(
    module: ModuleUpdates, present: Sequence[Update], weights: Sequence[float], combine: Combine
) -> LowRank:
    """Combine A's with A's and B's with B's, each under the root of |weight · scaling|, the sign on A."""
    if len({update.a.shape for update in present}) > 1:
        raise IncompatibleCheckpoints(
            f"The adapters' updates of {module.name!r} have different ranks, and this combination type needs one. Use "
            "cat, svd or one of the …_svd types."
        )
    products = [weight * update.scaling for weight, update in zip(weights, present, strict=True)]
    roots = [sqrt(abs(product)) for product in products]
    signed = [copysign(root, product) for root, product in zip(roots, products, strict=True)]
    return LowRank(
        a=combine("lora_A", [update.a.double() for update in present], signed),
        b=combine("lora_B", [update.b.double() for update in present], roots),
    )


def _combination(
    name: str, present: Sequence[int], parameters: PeftCombinationParameters, context: AdapterContext
) -> Combine:
    kind, density = parameters.combination_type, parameters.density

    def combine(purpose: str, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        if kind.startswith("dare"):
            keys = [_key(f"{name}/{purpose}", index, context) for index in present]
            tensors = [_drop(tensor, density, key) for tensor, key in zip(tensors, keys, strict=True)]
        elif kind.startswith(("ties", "magnitude_prune")):
            tensors = [_keep_largest(tensor, density) for tensor in tensors]
        if "ties" in kind:
            return _merge_disjoint(tensors, weights, parameters.majority_sign_method)
        return _add_up(tensors, weights)

    return combine


def _add_up(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        total += tensor * weight
    return total


def _merge_disjoint(tensors: Sequence[Tensor], weights: Sequence[float], method: str) -> Tensor:
    """Return the weighted sum of the entries that agree with the elected sign, divided by their number."""
    votes = [tensor.sign() for tensor in tensors] if method == "frequency" else tensors
    elected = torch.where(_add_up(votes, [1.0] * len(votes)) >= 0, 1.0, -1.0).to(tensors[0].dtype)
    agreeing = [tensor.sign() == elected for tensor in tensors]
    total = _add_up([tensor * mask for tensor, mask in zip(tensors, agreeing, strict=True)], weights)
    count = _add_up([mask.to(total.dtype) for mask in agreeing], [1.0] * len(agreeing))
    return total / count.clamp_(min=1.0)


def _keep_largest(tensor: Tensor, density: float) -> Tensor:
    n_kept = sparsify.count_kept(density, tensor.numel())
    order = tensor.flatten().abs().sort(descending=True, stable=True).indices
    kept = torch.zeros(tensor.numel(), dtype=tensor.dtype)
    kept[order[:n_kept]] = 1.0
    return tensor * kept.view(tensor.shape)


def _drop(tensor: Tensor, density: float, key: int) -> Tensor:
    draws = randomness.draw_uniform(key, start=0, n=tensor.numel())
    return tensor * (draws < density).view(tensor.shape) / density


def _key(purpose: str, model: int, context: AdapterContext) -> int:
    named = MergeContext(
        tensor=purpose, shape=(), offset=0, position=0,
        weights=context.weights, seed=context.seed, model_keys=context.model_keys,
    )  # fmt: skip
    return named.random_key("drop", model)
