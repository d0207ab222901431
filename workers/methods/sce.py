"""SCE: select the entries on which models differ most, calculate each model's share, erase the minority's signs.

Source: Wan et al. 2024, arXiv:2408.07990 (FuseChat), section 3.3.
Departs from source: by default what was not selected is dropped, as mergekit does, where the authors' code uses the
    selection for the shares alone; a tensor keeps at least one entry (docs/methods/sce.md).
"""

from math import fsum
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from app.domain.parameters import Parameters
from workers.contract import MergeContext, merge_method
from workers.numerics import precision, signs, spans, sparsify, task_vectors


class SceParameters(Parameters):
    """Parameters of `sce`."""

    density: Annotated[
        float,
        Field(gt=0.0, le=1.0, description="Fraction selected of each tensor's entries on which the models differ."),
    ] = 1.0
    variant: Annotated[
        Literal["mergekit", "fuseai"],
        Field(description="mergekit: only selected entries are merged; fuseai: these only decide the models' shares."),
    ] = "mergekit"


@merge_method(
    name="sce",
    title="SCE",
    summary="Selects entries by variance, weighs models by their energy there, erases minority signs.",
    source="Wan et al. 2024, arXiv:2408.07990",
    aliases=("select_calculate_erase", "fusechat"),
    parameters=SceParameters,
    base_model="required",
    models=(1, None),
    weights="unused",
    granularity="tensor",
    neutral_parameters={"density": 1.0},
)
def merge(base: Tensor, finetuned: Tensor, parameters: SceParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + Σ wᵢ τᵢ / Σ wᵢ over the τᵢ that have the elected sign.

    base: [*shape]; finetuned: [n, *shape]; result: [*shape].
    """
    deltas = task_vectors.subtract(finetuned, base)
    selected = select(deltas, parameters.density)
    shares = weigh(selected)
    kept = selected if parameters.variant == "mergekit" else deltas
    elected = signs.elect(kept, [1.0] * len(kept), balanced_sign=1)
    merged = signs.reduce_agreeing(kept, elected, shares, reduction="mean")
    return task_vectors.add(base, merged, scaling_coefficient=1.0)


def select(deltas: Tensor, density: float) -> Tensor:
    """Return the task vectors with all but the entries of the largest variance set to zero.

    deltas: [n, *shape]; result: [n, *shape]. Counted among the entries whose variance is not zero; at least one.
    """
    if density == 1.0:
        return deltas
    variance = _variance(deltas)
    n_differing = int(variance.count_nonzero())
    n_kept = min(n_differing, max(1, sparsify.count_kept(density, n_differing)))
    return deltas * sparsify.mark_largest(variance.flatten(), n_kept).view(variance.shape)


def weigh(deltas: Tensor) -> list[float]:
    """Return each task vector's share of their squared lengths; equal shares if all are zero."""
    energies = [spans.squared_length(delta) for delta in deltas]
    total = fsum(energies)
    return [energy / total if total > 0 else 1.0 / len(energies) for energy in energies]


def _variance(deltas: Tensor) -> Tensor:
    # [*shape] float64; exactly 0 where all are equal
    n = len(deltas)
    mean = precision.weighted_sum(deltas, [1.0] * n).div_(n)
    return precision.weighted_sum([delta.double().sub_(mean).square_() for delta in deltas], [1.0] * n)
