"""Where the magnitudes of each task vector are clipped, and from which score on its entries count, over all tensors.

Scores depend on the clipping, so one request finds both; the scores themselves are those of numerics/competition.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, prod

import numpy as np
import torch
from torch import Tensor

from workers.contract import Piece, PieceSource
from workers.numerics import competition, sparsify
from workers.numerics.competition import Bounds, Variant
from workers.statistics.magnitudes import MagnitudeBoundaries
from workers.statistics.views import ChangedSource


@dataclass(frozen=True)
class CompetitionBounds:
    """What the request found, one each per model."""

    clips: tuple[Bounds, ...]  # of magnitudes
    scores: tuple[Bounds, ...]  # from the last score that is kept to the largest


@dataclass(frozen=True)
class Competition:
    """Asks between which magnitudes task vectors are clipped, and between which scores entries are kept.

    Of n magnitudes, the floor(clip_fraction · n) largest become the next smaller one, as many smallest the next larger.
    The last score kept is the one of rank max(1, floor(density · n)).
    """

    name: str
    clip_fraction: float
    density: float
    variant: Variant

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set, but for very bad luck with a sample."""
        return 2

    def collect(self, source: PieceSource) -> CompetitionBounds:
        """Find the clipping, then the scores that it gives."""
        n = sum(prod(shape) for _, shape, _ in source.tensors)
        n_clipped = sparsify.count_kept(self.clip_fraction, n)
        clips = _find_bounds(source, (n_clipped + 1, n - n_clipped))
        scored = ChangedSource(source, lambda piece: self._score(piece, clips), "element")
        kept = _find_bounds(scored, (1, max(1, sparsify.count_kept(self.density, n))))
        scores = [Bounds(competition.to_score(one.low), competition.to_score(one.high)) for one in kept]
        return CompetitionBounds(tuple(clips), tuple(scores))

    def _score(self, piece: Piece, clips: Sequence[Bounds]) -> Piece:
        """Return the piece with scores, as magnitudes, in place of its models."""
        scores = competition.score(_deltas(piece), clips, self.variant)
        return replace(piece, base=None, models=competition.to_magnitudes(scores))


def _find_bounds(source: PieceSource, ranks: tuple[int, int]) -> list[Bounds]:
    """Return, per model, the magnitudes of two ranks; where the second is the last one, the first is 1."""
    n = sum(prod(shape) for _, shape, _ in source.tensors)
    if ranks[1] >= n:
        return _find_extremes(source)
    found = MagnitudeBoundaries("ranks", "global", lambda _: ranks, is_placed=False).collect(source)
    per_model = found.everywhere or ()
    return [Bounds(low.magnitude, high.magnitude) for high, low in per_model]


def _find_extremes(source: PieceSource) -> list[Bounds]:
    lowest, highest = torch.full((source.n_models,), inf), torch.zeros(source.n_models)
    for low, high in source.map(lambda piece: _deltas(piece).abs().aminmax(dim=1)):
        lowest, highest = torch.minimum(lowest, low), torch.maximum(highest, high)
    return [Bounds(low, high) for low, high in zip(lowest.tolist(), highest.tolist(), strict=True)]


def _deltas(piece: Piece) -> Tensor:
    """Return the task vectors, in memory of numpy's: see checkpoints/memory.py on torch's between what is counted."""
    if piece.base is None:
        return piece.finetuned
    return torch.sub(piece.finetuned, piece.base, out=torch.from_numpy(np.empty_like(piece.finetuned.numpy())))
