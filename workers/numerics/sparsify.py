"""Which entries of a task vector are kept: exact counts of magnitude ranks, ties broken by position.

Entries are ranked by (|x| descending, flat index ascending), so a rank names one entry and a count is met exactly.
A `Boundary` says where a rank lies without the sorted vector, and so applies to any piece of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, inf
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.fusion import Band

SAMPLED = 1 << 15  # scores that tell where a rank lies, and the part of them that it may lie away
SAMPLE_REACH = 32


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
    """Return the vector with the entries from a boundary on set to zero.

    vector: [m] float32, a run of entries whose first has flat index `start` in what was ranked; result: [m].
    """
    return _keep_first(vector, boundary, start=start, kept=torch.empty_like(vector))


def is_first(vector: Tensor, boundary: Boundary, *, start: int) -> Tensor:
    """Return which entries come before a boundary, [m] bool; of entries that are zero as of others. Else as above."""
    magnitudes = vector.abs()
    n_tied = min(max(boundary.index - start, 0), vector.numel())
    found = magnitudes > boundary.magnitude
    found[:n_tied] = magnitudes[:n_tied] >= boundary.magnitude
    return found


def keep_band(vector: Tensor, upper: Boundary, lower: Boundary, *, start: int) -> Tensor:
    """Return the vector with all entries but those from the upper boundary on, up to the lower one, set to zero.

    vector: [m] float32; result: [m].
    """
    kept = keep_first(vector, lower, start=start)
    return kept if upper == NOTHING else kept.sub_(keep_first(vector, upper, start=start))  # x − x or x − 0: exact


def fuse_trim(boundaries: Sequence[Boundary], *, origin: int) -> tuple[Band, ...]:
    """Return the masks that keep what `trim` keeps of a tensor whose first entry has flat index `origin`."""
    return tuple(fuse_band(NOTHING, boundary, origin=origin) for boundary in boundaries)


def fuse_band(upper: Boundary, lower: Boundary, *, origin: int) -> Band:
    """Return the mask that keeps what `keep_band` keeps of a tensor whose first entry has flat index `origin`."""
    return Band((lower.magnitude, lower.index), (upper.magnitude, upper.index), origin)


def keep_band_of_rows(rows: Tensor, ranks: tuple[int, int]) -> Tensor:
    """Return the rows with all entries but those whose rank in their own row lies in [ranks[0], ranks[1]) set to zero.

    rows: [n_rows, width] float32; result: [n_rows, width].
    """
    band = row_keys(rows).topk(ranks[1], dim=-1).indices[..., ranks[0] :]
    return torch.zeros_like(rows).scatter_(-1, band, rows.gather(-1, band))


def row_keys(rows: Tensor) -> Tensor:
    """Return one number per entry that orders each row by (|x| ascending, column descending), no two alike.

    rows: [n_rows, width] float32; result: [n_rows, width] int64, magnitude bits above, column below.
    """
    columns = torch.arange(rows.shape[-1], device=rows.device)
    return rows.abs().view(torch.int32).long().mul_(1 << 32).sub_(columns)


def find_last(scores: Tensor, n_kept: int) -> tuple[float, int]:
    """Return the smallest of the n_kept largest scores, and how many of these are equal to it.

    scores: [m] on the CPU or not, any floating dtype, no more than that many.
    """
    if n_kept <= 0:
        return inf, 0
    ranked: NDArray[np.floating[Any]] = scores.cpu().numpy()
    n_above, near = _find_near(ranked, n_kept)
    rank = n_kept - n_above  # within those near it
    near.partition(len(near) - rank)
    last = near[len(near) - rank]
    return float(last), int(np.count_nonzero(near[len(near) - rank :] == last))


def _find_near(ranked: NDArray[np.floating[Any]], n_kept: int) -> tuple[int, NDArray[np.floating[Any]]]:
    """Return how many scores are too large to be the n_kept-th, and those, in memory of their own, that may be it.

    These lie between two that a sample shows; where it misleads, they are all. Ordering all takes twice as long.
    """
    sample = np.sort(ranked[:: max(1, len(ranked) // SAMPLED)])
    place = len(sample) - int(n_kept * len(sample) / len(ranked))
    reach = len(sample) // SAMPLE_REACH
    low, high = sample[max(0, place - reach)], sample[min(len(sample) - 1, place + reach)]
    n_above = int(np.count_nonzero(ranked > high))
    near = ranked[(ranked >= low) & (ranked <= high)]
    return (n_above, near) if n_above < n_kept <= n_above + len(near) else (0, ranked.copy())


def mark_from(scores: Tensor, last: float, n_tied: int) -> tuple[Tensor, int]:
    """Return which scores are larger than the last one or among the first n_tied equal to it, and how many remain.

    scores: [m], a run of what `find_last` was given; n_tied: those that remain for it and the runs behind.
    """
    is_tied = scores == last
    n_found = int(is_tied.count_nonzero())
    if n_found > n_tied:
        is_tied.logical_and_(is_tied.cumsum(0) <= n_tied)
    return is_tied.logical_or_(scores > last), max(0, n_tied - n_found)


def trim(deltas: Tensor, boundaries: Sequence[Boundary], *, start: int) -> Tensor:
    """Return the task vectors with everything from each one's boundary on set to zero.

    deltas: [n, m] float32; one boundary per task vector; result: [n, m].
    """
    trimmed = torch.empty_like(deltas)
    for delta, boundary, kept in zip(deltas, boundaries, trimmed, strict=True):
        _keep_first(delta, boundary, start=start, kept=kept)
    return trimmed


def _keep_first(vector: Tensor, boundary: Boundary, *, start: int, kept: Tensor) -> Tensor:
    n_tied = min(max(boundary.index - start, 0), vector.numel())  # entries of the run that are kept even at a tie
    torch.hardshrink(vector[:n_tied], _just_below(boundary.magnitude), out=kept[:n_tied])
    torch.hardshrink(vector[n_tied:], boundary.magnitude, out=kept[n_tied:])  # zero unless |x| > magnitude
    return kept


def _just_below(magnitude: float) -> float:
    return float(np.nextafter(np.float32(magnitude), np.float32(-inf)))
