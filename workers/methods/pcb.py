"""PCB-Merging: task vectors compete for every entry; what is large in its own and agrees with the others has a say.

Source: Du et al. 2024, arXiv:2410.02396, and the authors' code.
Departs from source: clipping and keeping count ranks exactly; a task vector whose magnitudes are all one has no say,
    where the code divides 0 by 0 (docs/methods/pcb.md).
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from app.domain.parameters import Parameters, ScalingCoefficient
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.numerics import competition, task_vectors
from workers.numerics.competition import Variant
from workers.statistics.competition import Competition, CompetitionBounds

COMPETITION = "competition"


class PcbParameters(Parameters):
    """Parameters of `pcb`."""

    density: Annotated[
        float,
        Field(gt=0.0, le=1.0, description="Fraction of each task vector's entries kept, by score, in (0, 1]."),
    ] = 0.1
    clip_fraction: Annotated[
        float,
        Field(
            ge=0.0,
            le=0.25,
            description="Fraction of each task vector's entries whose magnitude is clipped, at either end.",
        ),
    ] = 0.01
    scaling_coefficient: ScalingCoefficient = 1.0
    variant: Annotated[
        Variant,
        Field(description="How entries are compared: by magnitudes rescaled to [0, 1], or by products as they are."),
    ] = "vision"


def collect(parameters: PcbParameters) -> Sequence[StatisticRequest]:
    """Ask where magnitudes are clipped, and which scores are kept."""
    return (Competition(COMPETITION, parameters.clip_fraction, parameters.density, parameters.variant),)


@merge_method(
    name="pcb",
    title="PCB-Merging",
    summary="Scores entries by size and agreement, keeps each task vector's best and averages them by score.",
    source="Du et al. 2024, arXiv:2410.02396",
    aliases=("pcb_merging", "parameter_competition_balancing"),
    parameters=PcbParameters,
    base_model="required",
    models=(1, None),
    granularity="element",
    counts_copies_as_one=False,
    statistic_passes=2,
    collect=collect,
)
def merge(base: Tensor, finetuned: Tensor, parameters: PcbParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + α Σ wᵢ Sᵢ ⊙ τ̂ᵢ / Σ Sᵢ, 0 where all Sᵢ are.

    base: [m]; finetuned: [n, m]; result: [m].
    """
    bounds: CompetitionBounds = context.statistics[COMPETITION]
    deltas = task_vectors.subtract(finetuned, base)  # [n, m]
    scores = competition.score(deltas, bounds.clips, parameters.variant)
    merged = competition.share_out(deltas, scores, bounds.clips, bounds.scores, context.weights)
    return task_vectors.add(base, merged, scaling_coefficient=parameters.scaling_coefficient)
