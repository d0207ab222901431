"""Adapters' updates of one module as thin matrices: stacked, and in float64."""

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.adapter_contract import ModuleUpdates, Update
from workers.numerics import thin_products
from workers.patches import LowRank


def factors(update: Update) -> tuple[Tensor, Tensor]:
    """Return (A, B), float64, whose product is the whole update: the scaling is in B, a linearized one is expanded."""
    a, b = thin_products.expand(update.a, update.b, update.a_start, update.b_start)
    return a.double(), b.double() * update.scaling


def all_factors(module: ModuleUpdates) -> list[tuple[Tensor, Tensor]]:
    """Return (A, B) of every adapter, float64; of rank 0 where it leaves the module as it is."""
    return [
        (torch.zeros(0, module.n_in, dtype=torch.float64), torch.zeros(module.n_out, 0, dtype=torch.float64))
        if update is None
        else factors(update)
        for update in module.updates
    ]


def stack(module: ModuleUpdates, coefficients: Sequence[float]) -> LowRank:
    """Return Σ cᵢ sᵢ Bᵢ Aᵢ as one product: the A's above each other, the scaled B's beside each other."""
    pairs = all_factors(module)
    return LowRank(
        a=torch.cat([a for a, _ in pairs]),
        b=torch.cat([c * b for c, (_, b) in zip(coefficients, pairs, strict=True)], dim=1),
    )
