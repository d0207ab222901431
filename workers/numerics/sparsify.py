"""Which entries of a task vector are kept: exact counts of magnitude ranks, ties broken by position.

Entries are ranked by (|x| descending, flat index ascending), so a rank names one entry and a count is met exactly.
A `Boundary` says where a rank lies without the sorted vector, and so applies to any piece of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, inf

import torch
from torch import Tensor


@dataclass(frozen=True)
class Boundary:
    """The first r entries of the ranking: those with |x| > magnitude, or |x| == magnitude and flat index < index."""

    magnitude: float
    index: int


NOTHING = Boundary(inf, 0)  # rank 0
EVERYTHING = Boundary(-1.0, 0)  # the rank of the last entry, and beyond


def count_kept(density: float, n: int) -> int:
    """Return floor(density · n), safe against a product that falls just short of a whole number (0.3 · 10)."""
    return min(n, floor(density * n + 1e-9))


def keep_first(vector: Tensor, boundary: Boundary, *, start: int) -> Tensor:
    """Return the mask of the entries ranked before a boundary.

    vector: [m], a run of entries whose first has flat index `start` in what was ranked; result: [m] bool.
    """
    magnitudes = vector.abs()
    n_ties_kept = min(max(boundary.index - start, 0), magnitudes.numel())  # entries of the run before boundary.index
    if n_ties_kept == 0:
        return magnitudes > boundary.magnitude
    if n_ties_kept == magnitudes.numel():
        return magnitudes >= boundary.magnitude
    before, after = magnitudes[:n_ties_kept], magnitudes[n_ties_kept:]
    return torch.cat((before >= boundary.magnitude, after > boundary.magnitude))


def keep_band(vector: Tensor, upper: Boundary, lower: Boundary, *, start: int) -> Tensor:
    """Return the mask of the entries ranked from the upper boundary on, up to the lower one.

    vector: [m]; result: [m] bool.
    """
    kept = keep_first(vector, lower, start=start)
    return kept if upper == NOTHING else kept.logical_and_(keep_first(vector, upper, start=start).logical_not_())


def keep_band_of_rows(rows: Tensor, ranks: tuple[int, int]) -> Tensor:
    """Return the mask of the entries whose rank within their own row lies in [ranks[0], ranks[1]).

    rows: [n_rows, width]; result: [n_rows, width] bool.
    """
    order = rows.abs().sort(dim=-1, descending=True, stable=True).indices
    mask = torch.zeros(rows.shape, dtype=torch.bool, device=rows.device)
    return mask.scatter_(-1, order[..., ranks[0] : ranks[1]], value=True)


def trim(deltas: Tensor, boundaries: Sequence[Boundary], *, start: int) -> Tensor:
    """Return the task vectors with everything behind each one's boundary set to zero.

    deltas: [n, m]; one boundary per task vector; result: [n, m].
    """
    trimmed = torch.empty_like(deltas)
    for delta, boundary, kept in zip(deltas, boundaries, trimmed, strict=True):
        torch.mul(delta, keep_first(delta, boundary, start=start), out=kept)
    return trimmed
