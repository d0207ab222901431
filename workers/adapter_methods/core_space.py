"""Core space: merge adapters as small square matrices between common bases of their factors.

Source: Panariello et al. 2025, arXiv:2509.17786, section 3.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from app.domain.parameters import NestedMethod, Parameters
from workers.adapter_contract import AdapterContext, ModuleUpdates, adapter_method
from workers.numerics import spectra, updates
from workers.patches import LowRank

DEFAULT = NestedMethod(method="ties", parameters={"density": 0.2})


class CoreSpaceParameters(Parameters):
    """Parameters of `core_space`."""

    merge: Annotated[NestedMethod, Field(description="The method that merges the adapters' core matrices.")] = DEFAULT
    tolerance: Annotated[
        float,
        Field(ge=0.0, lt=1.0, description="Directions of at most this part of the largest singular value are dropped."),
    ] = 1e-5


@adapter_method(
    name="core_space",
    title="Core space",
    summary="Merges adapters, with any method, as small matrices between common bases of their factors.",
    source="Panariello et al. 2025, arXiv:2509.17786",
    aliases=("core_space_merging",),
    parameters=CoreSpaceParameters,
    adapter_spaces=("shared",),
    neutral_parameters={"merge": {"method": "task_arithmetic", "parameters": {"scaling_coefficient": 1.0}}},
    nested={"merge": "local"},
)
def merge(
    modules: Sequence[ModuleUpdates], parameters: CoreSpaceParameters, context: AdapterContext
) -> Mapping[str, LowRank]:
    """Return U · merge(M₁ … M_K) · Vᵀ with Mᵢ = Uᵀ ΔWᵢ V; U and V span the columns of all Bᵢ and the rows of all Aᵢ."""
    frames: dict[str, tuple[Tensor, Tensor]] = {}
    cores: list[dict[str, Tensor]] = [{} for _ in context.weights]
    for module in context.each(modules):
        pairs = updates.all_factors(module)
        u = spectra.find_basis(torch.cat([b for _, b in pairs], dim=1), parameters.tolerance)  # [out, p]
        v = spectra.find_basis(torch.cat([a.T for a, _ in pairs], dim=1), parameters.tolerance)  # [in, q]
        frames[module.name] = u, v
        for core, (a, b) in zip(cores, pairs, strict=True):
            core[module.name] = (u.T @ b) @ (a @ v)  # [p, q]
    merged = context.merge(cores)
    return {name: LowRank(a=merged[name].double() @ v.T, b=u) for name, (u, v) in frames.items()}
