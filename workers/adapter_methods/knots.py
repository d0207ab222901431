"""KnOTS: align adapters by one singular value decomposition of all their updates, and merge in the common basis.

Source: Stoica et al. 2024, arXiv:2410.19735, section 4.
Departs from source: singular values are dropped relative to the largest, not below an absolute bound
    (docs/methods/knots.md).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from app.domain.parameters import NestedMethod, Parameters
from workers.adapter_contract import AdapterContext, ModuleUpdates, adapter_method
from workers.numerics import spectra, thin_products, updates
from workers.patches import LowRank

DEFAULT = NestedMethod(method="ties", parameters={"density": 0.2})


class KnotsParameters(Parameters):
    """Parameters of `knots`."""

    merge: Annotated[
        NestedMethod, Field(description="The method that merges the adapters' parts in the common basis.")
    ] = DEFAULT
    tolerance: Annotated[
        float,
        Field(ge=0.0, lt=1.0, description="Singular values of at most this part of the largest are dropped."),
    ] = 1e-5


@adapter_method(
    name="knots",
    title="KnOTS",
    summary="Aligns adapters in the common basis of all their updates and merges them there with any method.",
    source="Stoica et al. 2024, arXiv:2410.19735",
    aliases=("knots_ties",),
    parameters=KnotsParameters,
    adapter_spaces=("shared",),
    neutral_parameters={"merge": {"method": "task_arithmetic", "parameters": {"scaling_coefficient": 1.0}}},
    nested={"merge": "local"},
)
def merge(
    modules: Sequence[ModuleUpdates], parameters: KnotsParameters, context: AdapterContext
) -> Mapping[str, LowRank]:
    """Return U · merge(R₁ … R_K), where [ΔW₁ … ΔW_K] = U [R₁ … R_K] and U has orthonormal columns."""
    bases: dict[str, Tensor] = {}
    parts: list[dict[str, Tensor]] = [{} for _ in context.weights]
    for module in context.each(modules):
        pairs = updates.all_factors(module)
        bases[module.name] = _find_basis(pairs, parameters.tolerance)  # [out, k]
        for part, (a, b) in zip(parts, pairs, strict=True):
            part[module.name] = bases[module.name].T @ b @ a  # [k, in]
    merged = context.merge(parts)
    return {name: LowRank(a=merged[name].double(), b=basis) for name, basis in bases.items()}


def _find_basis(pairs: Sequence[tuple[Tensor, Tensor]], tolerance: float) -> Tensor:
    """Return the left singular vectors of [B₁A₁ … B_K A_K], largest first, without forming the products."""
    q, r = torch.linalg.qr(torch.cat([b for _, b in pairs], dim=1))
    blocks = r.split([b.shape[1] for _, b in pairs], dim=1)
    small = torch.cat([block @ a for block, (a, _) in zip(blocks, pairs, strict=True)], dim=1)  # [k, K · in]
    return thin_products.fix_signs(q @ spectra.find_basis(small, tolerance))
