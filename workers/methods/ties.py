"""TIES-merging: trim each task vector, elect one sign per entry, average what agrees.

Source: Yadav et al. 2023, arXiv:2306.01708, Algorithm 1.
Departs from source: exactly floor(density · n) entries are kept, ties by position, where the authors' code keeps all
    entries at a threshold; per-tensor trim, weighted votes, sum and max are offered beside (docs/methods/ties.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from app.domain.parameters import Density, Parameters, ScalingCoefficient
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.fusion import Election, FusedMerge
from workers.numerics import signs, sparsify, task_vectors
from workers.statistics.magnitudes import BoundaryTable, MagnitudeBoundaries
from workers.statistics.majority import TrimmedElection, TrimmedMajority

TRIM = "trim"
ELECTION = "election"

TrimScope = Annotated[
    Literal["global", "tensor"],
    Field(description="Where the largest entries are counted: over the whole model, or within each tensor."),
]
Reduce = Annotated[
    Literal["mean", "sum", "max"],
    Field(description="What becomes of the entries that agree with the elected sign."),
]
Vote = Annotated[
    Literal["unweighted", "weighted"],
    Field(description="Whether an entry votes by its magnitude, or by its magnitude times the model's weight."),
]
ZeroVote = Annotated[
    Literal["majority", "positive"],
    Field(description="Sign of an entry whose votes balance exactly: that of most entries of the model, or +."),
]


class TiesParameters(Parameters):
    """Parameters of `ties`."""

    density: Density = 0.2
    scaling_coefficient: ScalingCoefficient = 1.0
    trim_scope: TrimScope = "global"
    reduce: Reduce = "mean"
    vote: Vote = "unweighted"
    zero_vote: ZeroVote = "majority"


@dataclass(frozen=True)
class KeptRank:
    """The one rank that bounds a trim: at least one entry is kept, so that small tensors do not vanish."""

    density: float

    def __call__(self, n: int) -> tuple[int]:
        """Return how many of n entries are kept."""
        return (min(n, max(1, sparsify.count_kept(self.density, n))),)


def collect(parameters: TiesParameters) -> Sequence[StatisticRequest]:
    """Ask where the trim cuts and, where balanced votes follow the majority, which sign that is."""
    trim = MagnitudeBoundaries(TRIM, parameters.trim_scope, KeptRank(parameters.density))
    if parameters.zero_vote == "positive":
        return (trim,)
    return (TrimmedMajority(ELECTION, trim, is_weighted=parameters.vote == "weighted"),)


def fuse(parameters: TiesParameters, context: MergeContext) -> FusedMerge:
    """Return what `merge` computes, fused."""
    trim, balanced_sign = _collected(parameters, context)
    origin = context.position if parameters.trim_scope == "global" else 0
    votes = signs.weigh_votes(context.weights, is_weighted=parameters.vote == "weighted")
    return FusedMerge(
        context.weights,
        of_deltas=True,
        masks=sparsify.fuse_trim([boundaries[0] for boundaries in trim.of(context.tensor)], origin=origin),
        election=Election(tuple(votes), balanced_sign, parameters.reduce),
        scaling=parameters.scaling_coefficient,
        base_share=1.0,
    )


@merge_method(
    name="ties",
    title="TIES-merging",
    summary="Trims each task vector to its largest entries, elects a sign per entry, merges what agrees.",
    source="Yadav et al. 2023, arXiv:2306.01708",
    aliases=("ties_merging",),
    parameters=TiesParameters,
    base_model="required",
    models=(1, None),
    granularity="element",
    statistic_passes=2,
    neutral_parameters={"density": 1.0, "scaling_coefficient": 1.0},
    collect=collect,
    fused=fuse,
)
def merge(base: Tensor, finetuned: Tensor, parameters: TiesParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ · (disjoint merge of the trimmed task vectors).

    base: [m]; finetuned: [n, m]; result: [m]. A negative weight negates its task vector, also in the vote.
    """
    trim, balanced_sign = _collected(parameters, context)
    kept = [boundaries[0] for boundaries in trim.of(context.tensor)]
    start = context.position if parameters.trim_scope == "global" else context.offset
    deltas = signs.orient(task_vectors.subtract(finetuned, base), context.weights)  # [n, m]
    trimmed = sparsify.trim(deltas, kept, start=start)  # [n, m]
    votes = signs.weigh_votes(context.weights, is_weighted=parameters.vote == "weighted")
    elected = signs.elect(trimmed, votes, balanced_sign=balanced_sign)  # [m]
    strengths = [abs(weight) for weight in context.weights]
    merged = signs.reduce_agreeing(trimmed, elected, strengths, reduction=parameters.reduce)
    return task_vectors.add(base, merged, scaling_coefficient=parameters.scaling_coefficient)


def _collected(parameters: TiesParameters, context: MergeContext) -> tuple[BoundaryTable, int]:
    if parameters.zero_vote == "positive":
        return context.statistics[TRIM], 1
    election: TrimmedElection = context.statistics[ELECTION]
    return election.boundaries, election.majority
