"""How often the signs of task vectors disagree, counted entry by entry in each tensor: exact integers in any cut.

Source: Yadav et al. 2023, arXiv:2306.01708, section 3 (interference by disagreeing signs).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workers.contract import Piece, PieceSource
from workers.numerics import sparsify, task_vectors
from workers.statistics.magnitudes import BoundaryTable, MagnitudeBoundaries
from workers.statistics.trims import KeptRank


@dataclass(frozen=True)
class SignCounts:
    """Counts over some entries; an entry is changed by a model whose task vector is not zero there."""

    n_by_changers: Tensor  # [n + 1] int64: entries that 0, 1, …, n models change
    n_conflicting: int  # raised by one model, lowered by another
    n_both: Tensor  # [n, n] int64: changed by both models of a pair
    n_opposed: Tensor  # [n, n] int64: of those, in opposite directions

    def __add__(self, other: "SignCounts") -> "SignCounts":
        """Return the counts over the entries of both."""
        return SignCounts(
            self.n_by_changers + other.n_by_changers,
            self.n_conflicting + other.n_conflicting,
            self.n_both + other.n_both,
            self.n_opposed + other.n_opposed,
        )

    @property
    def n_shared(self) -> int:
        """Entries that two models or more change."""
        return int(self.n_by_changers[2:].sum())

    @property
    def n_by_chance(self) -> float:
        """Conflicting entries to expect if every sign were the toss of a coin: of k signs all agree by 2 · 2^(−k)."""
        changers = torch.arange(len(self.n_by_changers), dtype=torch.float64)[2:]
        return float((self.n_by_changers[2:] * (1.0 - 2.0 ** (1.0 - changers))).sum())


@dataclass(frozen=True)
class CountSigns:
    """Counts the signs of each tensor, after a trim of the task vectors if the density is below 1."""

    density: float = 1.0
    trim_scope: Literal["global", "tensor"] = "global"

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set."""
        return 1 if self.density == 1.0 else 2

    def collect(self, source: PieceSource) -> Mapping[str, SignCounts]:
        """Return the counts of every tensor, by name."""
        trim: BoundaryTable | None = None
        if self.density < 1.0:
            trim = MagnitudeBoundaries("trim", self.trim_scope, KeptRank(self.density)).collect(source)
        found = {name: nothing(source.n_models) for name, _, _ in source.tensors}
        for tensor, counts in source.map(lambda piece: (piece.tensor, self._count(piece, trim))):
            found[tensor] += counts
        return found

    def _count(self, piece: Piece, trim: BoundaryTable | None) -> SignCounts:
        deltas = piece.finetuned if piece.base is None else task_vectors.subtract(piece.finetuned, piece.base)
        if trim is not None:
            kept = [boundaries[0] for boundaries in trim.of(piece.tensor)]
            start = piece.position if self.trim_scope == "global" else piece.offset
            deltas = sparsify.trim(deltas, kept, start=start)
        return count_signs(deltas)


def nothing(n_models: int) -> SignCounts:
    """Return the counts over no entry."""
    zeros = torch.zeros(n_models, n_models, dtype=torch.int64)
    return SignCounts(torch.zeros(n_models + 1, dtype=torch.int64), 0, zeros, zeros)


def total(counts: Iterable[SignCounts], n_models: int) -> SignCounts:
    """Return the counts over all entries."""
    return sum(counts, start=nothing(n_models))


def count_signs(deltas: Tensor) -> SignCounts:
    """Return the counts of a run of entries. deltas: [n, m], m at most 2^24, so that float32 holds every count."""
    signs = deltas.sign()  # [n, m]
    n_raising, n_lowering = (signs > 0).sum(0), (signs < 0).sum(0)  # [m]
    changed = signs.abs()
    n_both, balance = changed @ changed.T, signs @ signs.T  # same signs count 1, opposite ones -1
    return SignCounts(
        torch.bincount(n_raising + n_lowering, minlength=len(deltas) + 1),
        int(((n_raising > 0) & (n_lowering > 0)).sum()),
        n_both.long(),
        ((n_both - balance) / 2).long(),
    )
