"""Windows of keys, within which ranks are looked for: one pass counts in all of them, and then each is settled.

A pass counts, of each window, what lies above it and, bin by bin, what lies within. If the rank lies within and a bin
is one single value, it is found; else the window shrinks to the bin, or moves to the side where the rank lies.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.contract import Piece, PieceSource
from workers.fusion import Rows
from workers.numerics import fused
from workers.numerics.fused import Keys
from workers.numerics.programs import Windows
from workers.statistics.rank_keys import LARGEST_KEY, fill_keys
from workers.statistics.rank_scopes import Effort, Scope
from workers.statistics.rank_ties import Tie
from workers.statistics.streams import map_fused
from workers.statistics.tallies import Block, Count, Tally, count_bins, join

WIDER = 16  # times as wide is the next window, where the rank lies beside one
MIN_COUNTS = 256  # numbers kept of a window, however many there are
MIN_JOINED_COUNTS = 1 << 14  # and of a tensor that one part of a merge has counted, however small


@dataclass(frozen=True)
class Window:
    """Where one rank of one model is looked for: keys from `low` to `high`."""

    model: int
    rank: int
    low: int
    high: int


@dataclass(frozen=True)
class Counted:
    """What a pass has counted in some neighboring pieces of a scope, window by window."""

    scope: int  # its index
    n_kept: float  # numbers that may be kept of each window, for each entry
    counts: tuple[Count, ...]

    @property
    def behind(self) -> int:
        """Index within the scope of the first entry behind."""
        return self.counts[0].blocks[-1].behind

    def join(self, following: "Sequence[Counted]") -> "Counted":
        """Return this and what follows as one, in numbers as few as a scope may have of as many entries."""
        parts = (self, *following)
        n_entries = parts[-1].behind - self.counts[0].blocks[0].first
        tallies = [Tally(max(MIN_JOINED_COUNTS, int(self.n_kept * n_entries))) for _ in self.counts]
        for one in parts:
            for tally, count in zip(tallies, one.counts, strict=True):
                tally.add(count)
        return Counted(self.scope, self.n_kept, tuple(tally.count for tally in tallies))


def count_windows(
    source: PieceSource, scopes: Sequence[Scope], windows: dict[int, list[Window]], effort: Effort
) -> Iterator[tuple[int, list[Tally]]]:
    """Read the scopes once; yield each with a tally per window when all its pieces were counted."""
    places = {name: (index, start) for index in windows for name, _, start in scopes[index].tensors}
    kept = {index: max(MIN_COUNTS, effort.n_counts // len(windows[index])) for index in windows}  # of one window
    rates = {index: kept[index] / scopes[index].n_elements for index in windows}
    tallies: dict[int, list[Tally]] = {}
    counted = map_fused(
        source,
        lambda rows: _count_rows(rows, places, windows, rates),
        lambda piece: _count_piece(piece, places, windows, rates),
        places,
    )
    for found in counted:
        index = found.scope
        if index not in tallies:
            tallies[index] = [Tally(kept[index]) for _ in windows[index]]
        for tally, count in zip(tallies[index], found.counts, strict=True):
            tally.add(count)
        if found.behind == scopes[index].n_elements:
            yield index, tallies.pop(index)


def _count_rows(
    rows: Rows,
    places: Mapping[str, tuple[int, int]],
    windows: Mapping[int, Sequence[Window]],
    rates: Mapping[int, float],
) -> Counted:
    index, start = places[rows.tensor]
    first = start + rows.offset
    counted = zip(windows[index], fused.count_keys(rows, _as_arrays(windows[index], rows.n_models)), strict=True)
    counts = [_count_of(n_above, keys, window, (first, rows.n_elements)) for window, (n_above, keys) in counted]
    return Counted(index, rates[index], tuple(counts))


def _as_arrays(windows: Sequence[Window], n_models: int) -> Windows:
    """Return windows, which are in the order of their models, as the kernel takes them."""
    models = [window.model for window in windows]
    return Windows(
        np.searchsorted(models, np.arange(n_models + 1)),
        np.array([window.low for window in windows], dtype=np.int32),
        np.array([window.high for window in windows], dtype=np.int32),
    )


def _count_piece(
    piece: Piece,
    places: Mapping[str, tuple[int, int]],
    windows: Mapping[int, Sequence[Window]],
    rates: Mapping[int, float],
) -> Counted:
    index, start = places[piece.tensor]
    scratch = _scratch(*piece.finetuned.shape)
    fill_keys(piece, scratch.keys)
    first = start + piece.offset
    counts = [_count_row(scratch, window, first) for window in windows[index]]
    return Counted(index, rates[index], tuple(counts))


@dataclass(frozen=True)
class _Scratch:
    """Arrays that one thread uses for one piece after the other."""

    keys: Keys  # [n_models, m]
    is_above: NDArray[np.bool_]  # [m]
    is_within: NDArray[np.bool_]  # [m]


_of_thread = threading.local()


def _scratch(n_models: int, n_elements: int) -> _Scratch:
    """Return this thread's arrays for a piece; the usual size is allocated once."""
    found: _Scratch | None = getattr(_of_thread, "scratch", None)
    if found is None or found.keys.shape != (n_models, n_elements):
        found = _Scratch(
            np.empty((n_models, n_elements), dtype=np.int32),
            np.empty(n_elements, dtype=np.bool_),
            np.empty(n_elements, dtype=np.bool_),
        )
        _of_thread.scratch = found
    return found


def _count_row(scratch: _Scratch, window: Window, first: int) -> Count:
    keys = scratch.keys[window.model]
    is_above = np.greater(keys, window.high, out=scratch.is_above)
    is_within = np.not_equal(np.greater_equal(keys, window.low, out=scratch.is_within), is_above, out=scratch.is_within)
    return _count_of(int(np.count_nonzero(is_above)), keys[is_within], window, (first, len(keys)))


def _count_of(n_above: int, keys: Keys, window: Window, run: tuple[int, int]) -> Count:
    """Return what was found in a run, of an index and so many entries: keys above the window, and those within it."""
    first, n_elements = run
    block = Block(first, first + n_elements, *count_bins(keys - np.int32(window.low)))
    return Count(n_above, 0, (block,))


def settle(window: Window, tally: Tally) -> Tie | Window:
    """Return the entry that the boundary lies behind, or the smaller window in which it is."""
    total = join(tally.blocks)
    behind = window.rank - tally.n_above  # rank within the window, from its top
    reach = WIDER * (window.high + 1 - window.low)  # a guess fails by a little, if it does
    if behind <= 0:
        return Window(window.model, window.rank, window.high + 1, min(LARGEST_KEY, window.high + reach))
    if behind > int(total.counts.sum()):
        return Window(window.model, window.rank, max(0, window.low - reach), window.low - 1)
    from_top = np.cumsum(total.counts[::-1])
    step = int(np.searchsorted(from_top, behind))
    bin_ = int(total.bins[len(total.bins) - 1 - step])
    low = window.low + (bin_ << tally.shift)
    if tally.shift:
        return Window(window.model, window.rank, low, min(window.high, low + (1 << tally.shift) - 1))
    n_ties = behind - (int(from_top[step - 1]) if step else 0)
    block, n_ties = _find_block(tally, bin_, n_ties)
    return Tie(window.model, window.rank, low, n_ties, block)


def _find_block(tally: Tally, bin_: int, n_ties: int) -> tuple[Block, int]:
    """Return the block that holds the n-th tie, and which of that block's ties it is."""
    for block in tally.blocks:
        n_held = int(block.counts[block.bins == bin_].sum())
        if n_ties <= n_held:
            return block, n_ties
        n_ties -= n_held
    raise ValueError(f"{n_ties} ties are missing from what was counted")
