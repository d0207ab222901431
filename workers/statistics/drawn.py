"""What is asked of task vectors as a random mask leaves them: norms to restore, and any other statistic."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from app.domain.errors import JobInternal
from workers.contract import MergeContext, Piece, PieceSource, StatisticRequest
from workers.fusion import Band, Rows
from workers.granularity import piece_shape
from workers.numerics import exact_sums, fused, sparsify, task_vectors
from workers.numerics.exact_sums import ExponentSums
from workers.numerics.random_masks import RandomMask, draw_all, fuse_draws
from workers.statistics import trims
from workers.statistics.streams import map_fused
from workers.statistics.views import ChangedSource

DRAWN = "mask"  # name of the request

Factors = Mapping[str, tuple[float, ...]]  # tensor -> one per model


@dataclass(frozen=True)
class Drawn:
    """What the request found."""

    factors: Factors = field(default_factory=dict)  # that restore each tensor's sum of magnitudes, if they shall
    beyond: Any = None  # what the inner request collected


@dataclass(frozen=True)
class DrawnStatistic:
    """Asks for what a random mask must know, and then for something of the task vectors that it leaves.

    Satisfies workers.contract.RandomStatistic.
    """

    mask: RandomMask
    inner: StatisticRequest | None = None
    context: MergeContext | None = None
    name: str = DRAWN

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set."""
        return int(self.mask.keeps_norm) + (self.inner.n_passes if self.inner else 0)

    @property
    def is_local(self) -> bool:
        """Whether nothing but each tensor's own factors is asked for."""
        return self.inner is None

    def within(self, context: MergeContext) -> "DrawnStatistic":
        """Return the request as it collects for a merge."""
        return replace(self, context=context)

    def collect(self, source: PieceSource) -> Drawn:
        """Find the factors, then collect the inner request through the mask."""
        factors = self._restoring_factors(source) if self.mask.keeps_norm else {}
        if self.inner is None:
            return Drawn(factors)
        left = ChangedSource(
            source,
            lambda piece: self._draw(piece, factors),
            self.mask.granularity,
            change_rows=lambda rows: self._draw_rows(rows, factors),
        )
        return Drawn(factors, self.inner.collect(left))

    def _restoring_factors(self, source: PieceSource) -> Factors:
        totals: dict[str, ExponentSums] = {}  # [2, n_models, exponents]: before and after
        granularity = self.mask.granularity
        for tensor, sums in map_fused(source, self._sum_norms_of_rows, self._sum_norms, granularity=granularity):
            totals[tensor] = totals[tensor] + sums if tensor in totals else sums
        return {
            tensor: tuple(_ratio(before, after) for before, after in zip(*sums, strict=True))
            for tensor, sums in totals.items()
        }

    def _sum_norms_of_rows(self, rows: Rows) -> tuple[str, ExponentSums]:
        return rows.tensor, fused.sum_norms(self._draw_rows(rows, {}))

    def _draw_rows(self, rows: Rows, factors: Factors) -> Rows:
        """Return the rows with what is drawn of them."""
        if self.context is None:
            raise JobInternal("a random mask was drawn without seed and keys; report this fault.")
        context = replace(self.context, tensor=rows.tensor)
        return replace(rows, draws=fuse_draws(self.mask, context, factors.get(rows.tensor, ())))

    def _sum_norms(self, piece: Piece) -> tuple[str, ExponentSums]:
        deltas = _deltas(piece)
        both = (deltas, self._left_of(deltas, piece, {}))
        return piece.tensor, np.array([[exact_sums.sum_magnitudes(delta) for delta in some] for some in both])

    def _draw(self, piece: Piece, factors: Factors) -> Piece:
        """Return the piece with the task vectors that are left as its models, and no base model."""
        return replace(piece, base=None, models=self._left_of(_deltas(piece), piece, factors))

    def _left_of(self, deltas: Tensor, piece: Piece, factors: Factors) -> Tensor:
        """Return what is drawn of a piece's task vectors, [n, m]."""
        if self.context is None:
            raise JobInternal("a random mask was drawn without seed and keys; report this fault.")
        shape = piece_shape(self.mask.granularity, piece.shape, deltas.shape[1])
        context = replace(self.context, tensor=piece.tensor, shape=piece.shape, offset=piece.offset)
        drawn = draw_all(self.mask, deltas.view(len(deltas), *shape), context, factors.get(piece.tensor, ()))
        return drawn.view(deltas.shape)


def _deltas(piece: Piece) -> Tensor:
    return piece.finetuned if piece.base is None else task_vectors.subtract(piece.finetuned, piece.base)


def _ratio(before: ExponentSums, after: ExponentSums) -> float:
    kept = exact_sums.to_fraction(after)
    return float(exact_sums.to_fraction(before) / kept) if kept else 1.0


def factors_of(context: MergeContext) -> tuple[float, ...]:
    """Return the factors that restore the sums of magnitudes of the context's tensor; empty where nothing asked."""
    found: Drawn = context.statistics.get(DRAWN, Drawn())
    return found.factors.get(context.tensor, ())


def request_norms(mask: RandomMask) -> tuple[DrawnStatistic, ...]:
    """Ask for the sums of magnitudes, if the mask is to restore them."""
    return (DrawnStatistic(mask),) if mask.keeps_norm else ()


def needs_ranks(choices: trims.TrimChoices, trim_density: float) -> bool:
    """Tell whether trim and election must know anything of the whole model."""
    return trim_density != 1.0 or choices.zero_vote != "positive"


def request_ranks(choices: trims.TrimChoices, mask: RandomMask, trim_density: float) -> tuple[DrawnStatistic, ...]:
    """Ask for what trim and election must know of the task vectors that a mask leaves, if they must know anything."""
    if not needs_ranks(choices, trim_density):
        return request_norms(mask)
    return (DrawnStatistic(mask, trims.request_trim(choices, trim_density)),)


def fuse_trim(choices: trims.TrimChoices, context: MergeContext) -> tuple[tuple[Band, ...], int]:
    """Return the masks of the trim, and the sign that balanced votes elect, as `trim_drawn` has them."""
    found: Drawn = context.statistics.get(DRAWN, Drawn())
    return ((), 1) if found.beyond is None else trims.fuse_trim(choices, found.beyond, context)


def trim_drawn(deltas: Tensor, choices: trims.TrimChoices, context: MergeContext) -> tuple[Tensor, int]:
    """Return the trimmed task vectors, and the sign that balanced votes elect.

    deltas: [n, *shape], what the mask left; result: [n, *shape].
    """
    found: Drawn = context.statistics.get(DRAWN, Drawn())
    if found.beyond is None:
        return deltas, 1
    table, balanced_sign = trims.read_trim(found.beyond)
    kept = [boundaries[0] for boundaries in table.of(context.tensor)]
    start = context.position if choices.trim_scope == "global" else context.offset
    return sparsify.trim(deltas.flatten(1), kept, start=start).view(deltas.shape), balanced_sign
