"""Exact selection by rank among magnitudes that are never held: a sample says where to look, one pass counts there.

Magnitudes are compared as integers: the bits of non-negative float32 numbers are ordered like the numbers. For each
rank a *window* of bits is guessed from a sample; a pass counts what lies above it and, bin by bin, what lies within. If
the rank lies within and a bin is one single value, it is found; else the window shrinks to the bin, or moves to the
side where the rank lies, and another pass follows. Nearly always one pass does; memory is bounded by constants.
"""

import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray

from workers.checkpoints import parallel
from workers.contract import Piece, PieceSource
from workers.fusion import NotClean, Rows
from workers.numerics import fused
from workers.numerics.fused import Keys
from workers.numerics.programs import Windows
from workers.numerics.sparsify import EVERYTHING, NOTHING, Boundary
from workers.statistics.streams import map_fused
from workers.statistics.tallies import Block, Count, Tally, count_bins, join

ModelBoundaries = tuple[tuple[Boundary, ...], ...]  # per model, one boundary per rank

LARGEST_KEY = int(np.iinfo(np.int32).max)
TIE_READ_ELEMENTS = 1 << 19
WIDER = 16  # times as wide is the next window, where the rank lies beside one
GOLDEN_RATIO = 0.6180339887498949  # its multiples lie evenly in [0, 1)
MIDDLE_OF = 1 << 13  # entries of a sample, where its quantile need not be exact: only the error is estimated there
MIN_COUNTS = 256  # numbers kept of a window, however many there are
MIN_JOINED_COUNTS = 1 << 14  # and of a tensor that one part of a merge has counted, however small


@dataclass(frozen=True)
class Effort:
    """How much memory and reading a search may spend; no result depends on it."""

    small_scope: int = 1 << 18  # entries of a scope that is simply held
    n_counts: int = 1 << 21  # numbers kept of all windows of one scope
    sample_run_elements: int = 2048
    elements_per_sample_run: int = 1 << 17
    min_sample_runs: int = 32  # of one scope
    max_sample_runs: int = 2048
    margin: float = 5.0  # standard errors of the sample's quantile on each side
    many_scopes: int = 16  # from so many on, one whose rank lies beside its window costs little: it alone is read again
    margin_of_many: float = 3.0


USUAL_EFFORT = Effort()


@dataclass(frozen=True)
class Scope:
    """The tensors within which magnitudes are ranked together, and the ranks wanted of each model."""

    tensors: tuple[tuple[str, int, int], ...]  # (name, elements, index of its first element within the scope), no empty
    n_elements: int
    ranks: tuple[int, ...]

    @property
    def searched_ranks(self) -> list[int]:
        """The ranks that do not go without saying."""
        return [rank for rank in self.ranks if 0 < rank < self.n_elements]


@dataclass(frozen=True)
class _Window:
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


@dataclass(frozen=True)
class _Scratch:
    """Arrays that one thread uses for one piece after the other."""

    keys: Keys  # [n_models, m]
    is_above: NDArray[np.bool_]  # [m]
    is_within: NDArray[np.bool_]  # [m]


_of_thread = threading.local()


@dataclass(frozen=True)
class _Tie:
    """The n-th entry of one model that has a key, counted from the start of a block: the last one of a rank."""

    model: int
    rank: int
    key: int
    n_ties: int
    block: Block


def select(
    source: PieceSource, scopes: Sequence[Scope], effort: Effort, *, is_placed: bool = True
) -> list[ModelBoundaries]:
    """Return, for each scope, the boundary of each of its ranks for each model.

    Of equal magnitudes the one with the smaller index within the scope ranks first. is_placed: False where nobody asks
    for the indices of boundaries; they mean nothing then.
    """
    return source.once(lambda: _select(source, scopes, effort, is_placed=is_placed))


def _select(source: PieceSource, scopes: Sequence[Scope], effort: Effort, *, is_placed: bool) -> list[ModelBoundaries]:
    searched = [index for index, scope in enumerate(scopes) if scope.searched_ranks]
    small = [index for index in searched if scopes[index].n_elements <= effort.small_scope]
    found: dict[tuple[int, int, int], Boundary] = {}  # (scope, model, rank)
    for index, keys in _hold(source, scopes, small) if small else ():
        for model, row in enumerate(keys):
            found.update({(index, model, rank): _select_held(row, rank) for rank in scopes[index].searched_ranks})
    large = [index for index in searched if index not in small]
    windows = source.once(lambda: _guess(source, scopes, large, effort)) if large else {}
    ties: list[tuple[int, _Tie]] = []
    while windows:
        open_windows: dict[int, list[_Window]] = {}
        for index, tallies in _count(source, scopes, windows, effort):
            for window, tally in zip(windows[index], tallies, strict=True):
                settled = _settle(window, tally)
                if isinstance(settled, _Tie):
                    ties.append((index, settled))
                else:
                    open_windows.setdefault(index, []).append(settled)
        windows = open_windows
    places = _find_ties(source, scopes, ties) if is_placed else [0] * len(ties)
    for (index, tie), behind in zip(ties, places, strict=True):
        found[index, tie.model, tie.rank] = Boundary(_magnitude(tie.key), behind)
    return [_boundaries(index, scope, source.n_models, found) for index, scope in enumerate(scopes)]


def _boundaries(
    index: int, scope: Scope, n_models: int, found: dict[tuple[int, int, int], Boundary]
) -> ModelBoundaries:
    def boundary(model: int, rank: int) -> Boundary:
        if rank <= 0:
            return NOTHING
        return EVERYTHING if rank >= scope.n_elements else found[index, model, rank]

    return tuple(tuple(boundary(model, rank) for rank in scope.ranks) for model in range(n_models))


# --- scopes that are held -----------------------------------------------------------------------------------------


def _hold(source: PieceSource, scopes: Sequence[Scope], indices: Sequence[int]) -> Iterator[tuple[int, Keys]]:
    """Yield each scope's keys, [n_models, n_elements]; scopes come one after the other."""
    scope_of = {name: index for index in indices for name, _, _ in scopes[index].tensors}
    held: list[Keys] = []
    for name, keys in source.map(lambda piece: (piece.tensor, _keys(piece)), scope_of):
        held.append(keys)
        index = scope_of[name]
        if sum(part.shape[1] for part in held) == scopes[index].n_elements:
            yield index, np.concatenate(held, axis=1)
            held = []


def _select_held(keys: Keys, rank: int) -> Boundary:
    key = int(np.partition(keys, len(keys) - rank)[len(keys) - rank])
    n_ties = rank - int(np.count_nonzero(keys > key))
    return Boundary(_magnitude(key), int(np.flatnonzero(keys == key)[n_ties - 1]) + 1)


# --- scopes that are counted --------------------------------------------------------------------------------------


def _guess(
    source: PieceSource, scopes: Sequence[Scope], indices: Sequence[int], effort: Effort
) -> dict[int, list[_Window]]:
    """Return, of each scope, a window for each model and rank, wide enough to hold it but for very bad luck."""
    runs = [[(runs[0], runs) for runs in _sample_runs(scopes[index], effort)] for index in indices]
    sampled = source.visit(lambda runs: _read_sample(source, *runs), runs) if runs else ()
    margin = effort.margin if len(indices) < effort.many_scopes else effort.margin_of_many

    def guess(found: tuple[int, Iterator[Keys]]) -> tuple[int, list[_Window]]:
        index, samples = found
        return index, _guess_windows(list(samples), scopes[index], source.n_models, margin)

    return dict(parallel.map_in_order(guess, zip(indices, sampled, strict=True), threads=source.threads))


def _guess_windows(samples: Sequence[Keys], scope: Scope, n_models: int, margin: float) -> list[_Window]:
    windows: list[_Window] = []
    for model in range(n_models):
        sample = _Sample([of_tensor[model] for of_tensor in samples])
        for rank in scope.searched_ranks:
            windows.append(_Window(model, rank, *sample.bracket(rank / scope.n_elements, margin)))
    return windows


def _sample_runs(scope: Scope, effort: Effort) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Yield (tensor, offsets, elements of each) of runs, one in each of equal parts of the scope, anywhere within it.

    Anywhere, so that no period of the scope (its rows, its layers) is met at the same place each time.
    """
    starts = [start for _, _, start in scope.tensors]
    n_runs = scope.n_elements // effort.elements_per_sample_run
    n_runs = min(max(n_runs, effort.min_sample_runs), effort.max_sample_runs)
    indices = (int((run + (run * GOLDEN_RATIO + 0.5) % 1.0) * scope.n_elements / n_runs) for run in range(n_runs))
    for number, within in groupby(indices, lambda index: bisect_right(starts, index) - 1):
        name, size, start = scope.tensors[number]
        n_elements = min(size, effort.sample_run_elements)
        yield name, tuple(min(index - start, size - n_elements) for index in within), n_elements


class _Sample:
    """The keys of a model that were sampled: runs of each tensor, [runs, elements]."""

    def __init__(self, of_tensors: Sequence[Keys]) -> None:
        self._of_tensors = of_tensors
        self._lengths = np.repeat([runs.shape[1] for runs in of_tensors], [len(runs) for runs in of_tensors])
        self._entries = np.concatenate([runs.ravel() for runs in of_tensors])
        self._some = np.sort(self._entries[:: max(1, len(self._entries) // MIDDLE_OF)])

    def bracket(self, share: float, margin: float) -> tuple[int, int]:
        """Return keys between which the quantile lies: the sample's, some standard errors to each side.

        The error is that of a sample with one run in each part of the scope: what neighboring runs differ by (a ratio
        estimate). Entries of a run are alike, so that it counts as one; tensors that differ widely do no harm.
        """
        n, n_runs, some = len(self._entries), len(self._lengths), self._some
        middle = some[min(len(some) - 1, int((1 - share) * len(some)))]
        n_above = np.concatenate([np.count_nonzero(runs >= middle, axis=1) for runs in self._of_tensors])
        excess = n_above - n_above.sum() / n * self._lengths
        steps = np.diff(excess) if n_runs > 1 else excess
        # each of n runs varies by half of what two do, and there are n - 1 steps
        variance = float(np.square(steps).mean()) / (2 if n_runs > 1 else 1) * n_runs
        reach = margin * sqrt(variance) + 2  # in entries of the sample
        below, above = int((1 - share) * n - reach), int((1 - share) * n + reach) + 1
        low, high = _at(self._entries, max(0, below), min(n - 1, above), some)
        return low if below >= 0 else 0, high if above < n else LARGEST_KEY


def _at(entries: Keys, below: int, above: int, some: Keys) -> tuple[int, int]:
    """Return the entries that have two indices when they are ordered; some of them, ordered, tell where to look."""
    n, n_some = len(entries), len(some)
    slack = int(6 * sqrt(n_some / 4))  # six standard errors of a rank
    lowest = some[max(0, below * n_some // n - slack)]
    near = entries[(entries >= lowest) & (entries <= some[min(n_some - 1, above * n_some // n + slack)])]
    n_before = int(np.count_nonzero(entries < lowest))
    if not n_before <= below <= above < n_before + len(near):
        near, n_before = entries, 0  # ordered in place: nobody asks for their order
    near.partition([below - n_before, above - n_before])
    return int(near[below - n_before]), int(near[above - n_before])


def _count(
    source: PieceSource, scopes: Sequence[Scope], windows: dict[int, list[_Window]], effort: Effort
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
    windows: Mapping[int, Sequence[_Window]],
    rates: Mapping[int, float],
) -> Counted:
    index, start = places[rows.tensor]
    first = start + rows.offset
    counted = zip(windows[index], fused.count_keys(rows, _as_arrays(windows[index], rows.n_models)), strict=True)
    counts = [_count_of(n_above, keys, window, (first, rows.n_elements)) for window, (n_above, keys) in counted]
    return Counted(index, rates[index], tuple(counts))


def _as_arrays(windows: Sequence[_Window], n_models: int) -> Windows:
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
    windows: Mapping[int, Sequence[_Window]],
    rates: Mapping[int, float],
) -> Counted:
    index, start = places[piece.tensor]
    scratch = _scratch(*piece.finetuned.shape)
    _fill_keys(piece, scratch.keys)
    first = start + piece.offset
    counts = [_count_row(scratch, window, first) for window in windows[index]]
    return Counted(index, rates[index], tuple(counts))


def _count_row(scratch: _Scratch, window: _Window, first: int) -> Count:
    keys = scratch.keys[window.model]
    is_above = np.greater(keys, window.high, out=scratch.is_above)
    is_within = np.not_equal(np.greater_equal(keys, window.low, out=scratch.is_within), is_above, out=scratch.is_within)
    return _count_of(int(np.count_nonzero(is_above)), keys[is_within], window, (first, len(keys)))


def _count_of(n_above: int, keys: Keys, window: _Window, run: tuple[int, int]) -> Count:
    """Return what was found in a run, of an index and so many entries: keys above the window, and those within it."""
    first, n_elements = run
    block = Block(first, first + n_elements, *count_bins(keys - np.int32(window.low)))
    return Count(n_above, 0, (block,))


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


def _settle(window: _Window, tally: Tally) -> _Tie | _Window:
    """Return the entry that the boundary lies behind, or the smaller window in which it is."""
    total = join(tally.blocks)
    behind = window.rank - tally.n_above  # rank within the window, from its top
    reach = WIDER * (window.high + 1 - window.low)  # a guess fails by a little, if it does
    if behind <= 0:
        return _Window(window.model, window.rank, window.high + 1, min(LARGEST_KEY, window.high + reach))
    if behind > int(total.counts.sum()):
        return _Window(window.model, window.rank, max(0, window.low - reach), window.low - 1)
    from_top = np.cumsum(total.counts[::-1])
    step = int(np.searchsorted(from_top, behind))
    bin_ = int(total.bins[len(total.bins) - 1 - step])
    low = window.low + (bin_ << tally.shift)
    if tally.shift:
        return _Window(window.model, window.rank, low, min(window.high, low + (1 << tally.shift) - 1))
    n_ties = behind - (int(from_top[step - 1]) if step else 0)
    block, n_ties = _find_block(tally, bin_, n_ties)
    return _Tie(window.model, window.rank, low, n_ties, block)


def _find_block(tally: Tally, bin_: int, n_ties: int) -> tuple[Block, int]:
    """Return the block that holds the n-th tie, and which of that block's ties it is."""
    for block in tally.blocks:
        n_held = int(block.counts[block.bins == bin_].sum())
        if n_ties <= n_held:
            return block, n_ties
        n_ties -= n_held
    raise ValueError(f"{n_ties} ties are missing from what was counted")


def _find_ties(source: PieceSource, scopes: Sequence[Scope], ties: Sequence[tuple[int, _Tie]]) -> Iterator[int]:
    """Yield the index right behind each tie, by reading its block again. ties: each with the index of its scope."""
    groups = [
        [
            (name, (tie, (name, offset, n_elements), start))
            for name, offset, n_elements, start in _runs_between(scopes[index], tie.block.first, tie.block.behind)
        ]
        for index, tie in ties
    ]
    visited = source.visit(lambda place: _find_keys(source, *place), groups) if groups else ()
    found = zip((tie for _, tie in ties), visited, strict=True)
    return parallel.map_in_order(lambda one: _find_tie(*one), found, threads=source.threads)


def _find_tie(tie: _Tie, runs: Iterator[NDArray[np.int64]]) -> int:
    """Return the index right behind a tie. runs: what `_find_keys` finds in its block, as far as it is asked for."""
    missing = tie.n_ties
    for behind in runs:
        if missing <= len(behind):
            return int(behind[missing - 1])
        missing -= len(behind)
    raise ValueError(f"{missing} ties are missing from entries {tie.block.first} to {tie.block.behind}")


def _runs_between(scope: Scope, first: int, behind: int) -> Iterator[tuple[str, int, int, int]]:
    """Yield (tensor, offset, elements, index within the scope) of runs that cover the indices [first, behind)."""
    for name, size, start in scope.tensors:
        for begin in range(max(first, start), min(behind, start + size), TIE_READ_ELEMENTS):
            yield name, begin - start, min(TIE_READ_ELEMENTS, behind - begin, start + size - begin), begin


def _read_sample(source: PieceSource, tensor: str, offsets: Sequence[int], n_elements: int) -> Keys:
    """Return the bits of |τ| of runs of one tensor, [n_models, runs, n_elements]."""
    rows = source.rows(tensor, offsets[0], n_elements) if fused.is_ready() else None
    if rows is not None and rows.are_stored:
        with suppress(NotClean):
            return fused.read_keys(rows, np.array(offsets) - offsets[0]).reshape(-1, len(offsets), n_elements)
    return np.stack([_keys(source.read(tensor, offset, n_elements)) for offset in offsets], axis=1)


def _find_keys(source: PieceSource, tie: _Tie, run: tuple[str, int, int], start: int) -> NDArray[np.int64]:
    """Return the indices right behind the first entries of a run that have the tie's key; `start`: of the run."""
    rows = source.rows(*run) if fused.is_ready() else None
    if rows is not None:
        with suppress(NotClean):
            return fused.find_keys(rows.of_model(tie.model), tie.key, tie.n_ties) + (start + 1)
    keys = _keys(source.read(*run))[tie.model]
    return np.flatnonzero(keys == tie.key)[: tie.n_ties] + (start + 1)


def _keys(piece: Piece) -> Keys:
    """Return the bits of |τ|, [n_models, m]; without a base model τ is the model itself."""
    keys = np.empty(piece.finetuned.shape, dtype=np.int32)
    _fill_keys(piece, keys)
    return keys


def _fill_keys(piece: Piece, keys: Keys) -> None:
    deltas = torch.from_numpy(keys.view(np.float32))
    if piece.base is None:
        deltas.copy_(piece.finetuned)
    else:
        torch.sub(piece.finetuned, piece.base, out=deltas)
    np.bitwise_and(keys, LARGEST_KEY, out=keys)


def _magnitude(key: int) -> float:
    return float(np.array(key, dtype=np.int32).view(np.float32))
