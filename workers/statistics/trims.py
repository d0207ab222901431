"""The trim and the election of TIES, for every method that has them: what to ask for, and how to read the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from workers.contract import MergeContext
from workers.fusion import Band, Election, FusedMerge
from workers.numerics import signs, sparsify
from workers.statistics.magnitudes import BoundaryTable, MagnitudeBoundaries
from workers.statistics.majority import TrimmedElection, TrimmedMajority

TRIM = "trim"  # name of the request


class TrimChoices(Protocol):
    """The parameters of a method that decide what it must know before it trims and elects."""

    @property
    def trim_scope(self) -> Literal["global", "tensor"]:
        """Where entries are counted."""

    @property
    def vote(self) -> Literal["unweighted", "weighted"]:
        """Whether weights count in the vote."""

    @property
    def zero_vote(self) -> Literal["majority", "positive"]:
        """What balanced votes elect."""


class TiesChoices(TrimChoices, Protocol):
    """The parameters of TIES."""

    @property
    def reduce(self) -> Literal["mean", "sum", "max"]:
        """What is made of the entries that agree."""

    @property
    def scaling_coefficient(self) -> float:
        """How far the result goes along what they make."""


@dataclass(frozen=True)
class KeptRank:
    """The one rank that bounds a trim: at least one entry is kept, so that small tensors do not vanish."""

    density: float

    def __call__(self, n: int) -> tuple[int]:
        """Return how many of n entries are kept."""
        return (min(n, max(1, sparsify.count_kept(self.density, n))),)


def request_trim(
    choices: TrimChoices, density: float, of_models: Sequence[float] = ()
) -> MagnitudeBoundaries | TrimmedMajority:
    """Ask where the trim cuts and, where balanced votes follow the majority, which sign that is.

    of_models: each model's density, where they differ.
    """
    own = tuple(KeptRank(one) for one in of_models)
    trim = MagnitudeBoundaries(TRIM, choices.trim_scope, KeptRank(density), of_models=own)
    if choices.zero_vote == "positive":
        return trim
    return TrimmedMajority(TRIM, trim, is_weighted=choices.vote == "weighted")


def read_trim(found: BoundaryTable | TrimmedElection) -> tuple[BoundaryTable, int]:
    """Return where the trim cuts, and the sign that balanced votes elect."""
    return (found.boundaries, found.majority) if isinstance(found, TrimmedElection) else (found, 1)


def fuse_trim(
    choices: TrimChoices, found: BoundaryTable | TrimmedElection, context: MergeContext
) -> tuple[tuple[Band, ...], int]:
    """Return the masks of the trim, and the sign that balanced votes elect. found: the answer; context: of a tensor."""
    table, balanced_sign = read_trim(found)
    origin = context.position if choices.trim_scope == "global" else 0
    return sparsify.fuse_trim([boundaries[0] for boundaries in table.of(context.tensor)], origin=origin), balanced_sign


def fuse_ties(choices: TiesChoices, context: MergeContext) -> FusedMerge:
    """Return TIES, fused: the trim that `request_trim` asked for, the election, and the merge of those that agree."""
    masks, balanced_sign = fuse_trim(choices, context.statistics[TRIM], context)
    votes = signs.weigh_votes(context.weights, is_weighted=choices.vote == "weighted")
    return FusedMerge(
        context.weights,
        of_deltas=True,
        masks=masks,
        election=Election(tuple(votes), balanced_sign, choices.reduce),
        scaling=choices.scaling_coefficient,
        base_share=1.0,
    )
