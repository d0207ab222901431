"""Exact selection by rank among magnitudes that are never held: a sample says where to look, one pass counts there.

Magnitudes are compared as integers: the bits of non-negative float32 numbers are ordered like the numbers. For each
rank a *window* of bits is guessed from a sample; a pass counts what lies above it and, in a histogram, what lies
within. If the rank lies within and a bin is one single value, it is found; else the window shrinks to the bin, or moves
to the side where the rank lies, and another pass follows. Nearly always one pass does; memory is bounded by constants.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray

from workers.contract import Piece, PieceSource
from workers.numerics import task_vectors
from workers.numerics.sparsify import EVERYTHING, NOTHING, Boundary

Keys = NDArray[np.int32]  # bits of magnitudes
Counts = NDArray[np.int64]
ModelBoundaries = tuple[tuple[Boundary, ...], ...]  # per model, one boundary per rank

LARGEST_KEY = int(np.iinfo(np.int32).max)
N_BLOCKS = 32  # parts of a scope with a histogram each, so that a tie is found again by reading one part
TIE_READ_ELEMENTS = 1 << 17


@dataclass(frozen=True)
class Effort:
    """How much memory and reading a search may spend; no result depends on it."""

    small_scope: int = 1 << 18  # entries of a scope that is simply held and sorted
    histogram_bytes: int = 1 << 26  # of all histograms of one scope
    sample_runs: int = 2048  # of one scope, at most
    sample_run_elements: int = 1024
    sampled_share: float = 1 / 32  # of one scope, at most
    margin: float = 6.0  # standard errors of the sample's quantile on each side


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
    """Where one rank of one model is looked for: keys from `low` to `high`, 2^shift of them to a bin."""

    model: int
    rank: int
    low: int
    high: int
    shift: int


@dataclass(frozen=True)
class _Count:
    """What one piece has of one window: how many keys above it, and the bins that occur within."""

    n_above: int
    bins: NDArray[np.int64]
    counts: Counts


class _Tally:
    """What a pass has counted of one scope so far."""

    def __init__(self, windows: Sequence[_Window]) -> None:
        self.n_seen = 0
        self.above = [0] * len(windows)
        self.within: list[Counts] = [
            np.zeros((N_BLOCKS, (window.high - window.low >> window.shift) + 1), dtype=np.int64) for window in windows
        ]
        self.blocks: dict[int, tuple[int, int]] = {}  # block -> indices [first, behind) of its pieces

    def add(self, start: int, n_elements: int, counts: Sequence[_Count], scope: Scope) -> None:
        """Count one more piece; pieces come in the order of their indices."""
        block = start * N_BLOCKS // scope.n_elements
        first, _ = self.blocks.get(block, (start, start))
        self.blocks[block] = (first, start + n_elements)
        for index, count in enumerate(counts):
            self.above[index] += count.n_above
            self.within[index][block, count.bins] += count.counts
        self.n_seen += n_elements


def select(source: PieceSource, scopes: Sequence[Scope], effort: Effort) -> list[ModelBoundaries]:
    """Return, for each scope, the boundary of each of its ranks for each model.

    Of equal magnitudes the one with the smaller index within the scope ranks first.
    """
    searched = [index for index, scope in enumerate(scopes) if scope.searched_ranks]
    small = [index for index in searched if scopes[index].n_elements <= effort.small_scope]
    found: dict[tuple[int, int, int], Boundary] = {}  # (scope, model, rank)
    for index, keys in _hold(source, scopes, small):
        for model, row in enumerate(keys):
            found.update({(index, model, rank): _select_held(row, rank) for rank in scopes[index].searched_ranks})
    windows = {index: _guess(source, scopes[index], effort) for index in searched if index not in small}
    while windows:
        open_windows: dict[int, list[_Window]] = {}
        for index, tally in _count(source, scopes, windows):
            scope = scopes[index]
            for row, window in enumerate(windows[index]):
                settled = _settle(source, scope, window, tally, row)
                if isinstance(settled, Boundary):
                    found[index, window.model, window.rank] = settled
                else:
                    open_windows.setdefault(index, []).append(settled)
        windows = {index: _bin(rest, effort) for index, rest in open_windows.items()}
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


def _guess(source: PieceSource, scope: Scope, effort: Effort) -> list[_Window]:
    """Return a window for each model and rank, wide enough to hold it but for very bad luck."""
    runs = [_keys(source.read(*run)) for run in _sample_runs(scope, effort)]
    windows: list[_Window] = []
    for model in range(source.n_models):
        of_model = [run[model] for run in runs]
        ordered = np.sort(np.concatenate(of_model))
        for rank in scope.searched_ranks:
            low, high = _bracket(of_model, ordered, rank / scope.n_elements, effort.margin)
            windows.append(_Window(model, rank, low, high, 0))
    return _bin(windows, effort)


def _sample_runs(scope: Scope, effort: Effort) -> Iterator[tuple[str, int, int]]:
    """Yield (tensor, offset, elements) of runs that lie evenly over the scope."""
    starts = [start for _, _, start in scope.tensors]
    n_runs = ceil(min(effort.sample_runs, scope.n_elements * effort.sampled_share / effort.sample_run_elements))
    for run in range(n_runs):
        index = (2 * run + 1) * scope.n_elements // (2 * n_runs)
        name, size, start = scope.tensors[bisect_right(starts, index) - 1]
        n_elements = min(size, effort.sample_run_elements)
        yield name, min(index - start, size - n_elements), n_elements


def _bracket(runs: Sequence[Keys], ordered: Keys, share: float, margin: float) -> tuple[int, int]:
    """Return keys between which the quantile lies: the sample's, some standard errors to each side.

    Neighbors are alike, so the error is estimated between runs (a ratio estimate), not between entries.
    """
    n = len(ordered)
    middle = ordered[min(n - 1, int((1 - share) * n))]
    excess = [int(np.count_nonzero(run >= middle)) - share * len(run) for run in runs]
    reach = margin * sqrt(sum(value * value for value in excess)) + 2  # in entries of the sample
    below, above = int((1 - share) * n - reach), int((1 - share) * n + reach) + 1
    return int(ordered[below]) if below >= 0 else 0, int(ordered[above]) if above < n else LARGEST_KEY


def _bin(windows: Sequence[_Window], effort: Effort) -> list[_Window]:
    """Return the windows with bins as fine as their histograms may be."""
    bits = max(8, (effort.histogram_bytes // (8 * N_BLOCKS * len(windows))).bit_length() - 1)
    return [
        _Window(
            window.model,
            window.rank,
            window.low,
            window.high,
            max(0, (window.high - window.low).bit_length() - bits),
        )
        for window in windows
    ]


def _count(
    source: PieceSource, scopes: Sequence[Scope], windows: dict[int, list[_Window]]
) -> Iterator[tuple[int, _Tally]]:
    """Read the scopes once; yield each with its tally when all its pieces were counted."""
    places = {name: (index, start) for index in windows for name, _, start in scopes[index].tensors}

    def count(piece: Piece) -> tuple[Piece, int, list[_Count]]:
        keys = _keys(piece)
        return piece, keys.shape[1], [_count_row(keys[w.model], w) for w in windows[places[piece.tensor][0]]]

    tallies: dict[int, _Tally] = {}
    for piece, n_elements, counts in source.map(count, places):
        index, start = places[piece.tensor]
        tally = tallies[index] if index in tallies else tallies.setdefault(index, _Tally(windows[index]))
        tally.add(start + piece.offset, n_elements, counts, scopes[index])
        if tally.n_seen == scopes[index].n_elements:
            yield index, tallies.pop(index)


def _count_row(keys: Keys, window: _Window) -> _Count:
    n_above = int(np.count_nonzero(keys > window.high))
    within = keys - window.low
    within = within[within.view(np.uint32) <= window.high - window.low] >> window.shift
    bins, counts = np.unique(within, return_counts=True)
    return _Count(n_above, bins.astype(np.int64), counts.astype(np.int64))


def _settle(source: PieceSource, scope: Scope, window: _Window, tally: _Tally, row: int) -> Boundary | _Window:
    """Return the boundary, or the smaller window in which it lies."""
    per_bin = tally.within[row].sum(axis=0)
    behind = window.rank - tally.above[row]  # rank within the window, from its top
    if behind <= 0:
        return _Window(window.model, window.rank, window.high + 1, LARGEST_KEY, 0)
    if behind > int(per_bin.sum()):
        return _Window(window.model, window.rank, 0, window.low - 1, 0)
    from_top = np.cumsum(per_bin[::-1])
    step = int(np.searchsorted(from_top, behind))
    index = len(per_bin) - 1 - step
    low = window.low + (index << window.shift)
    if window.shift:
        return _Window(window.model, window.rank, low, min(window.high, low + (1 << window.shift) - 1), 0)
    n_ties = behind - (int(from_top[step - 1]) if step else 0)
    if n_ties == int(per_bin[index]):
        return Boundary(_magnitude(low), scope.n_elements)
    return Boundary(_magnitude(low), _find_tie(source, scope, window.model, low, n_ties, tally, row, index))


def _find_tie(  # noqa: PLR0913 where to look, for what, and what was counted
    source: PieceSource, scope: Scope, model: int, key: int, n_ties: int, tally: _Tally, row: int, bin_index: int
) -> int:
    """Return the index right behind the n-th tie, by reading again the one block that holds it."""
    up_to = np.cumsum(tally.within[row][:, bin_index])
    block = int(np.searchsorted(up_to, n_ties))
    missing = n_ties - (int(up_to[block - 1]) if block else 0)
    for name, offset, n_elements, start in _runs_between(scope, *tally.blocks[block]):
        ties = np.flatnonzero(_keys(source.read(name, offset, n_elements))[model] == key)
        if len(ties) >= missing:
            return start + int(ties[missing - 1]) + 1
        missing -= len(ties)
    raise ValueError(f"no {n_ties}-th tie in block {block}")


def _runs_between(scope: Scope, first: int, behind: int) -> Iterator[tuple[str, int, int, int]]:
    """Yield (tensor, offset, elements, index within the scope) of runs that cover the indices [first, behind)."""
    for name, size, start in scope.tensors:
        for begin in range(max(first, start), min(behind, start + size), TIE_READ_ELEMENTS):
            yield name, begin - start, min(TIE_READ_ELEMENTS, behind - begin, start + size - begin), begin


def _keys(piece: Piece) -> Keys:
    """Return the bits of |τ|, [n_models, m]; without a base model τ is the model itself."""
    finetuned = piece.finetuned
    deltas = finetuned.clone() if piece.base is None else task_vectors.subtract(finetuned, piece.base)
    bits: Keys = deltas.numpy().view(np.int32)
    np.bitwise_and(bits, LARGEST_KEY, out=bits)
    return bits


def _magnitude(key: int) -> float:
    return float(np.array(key, dtype=np.int32).view(np.float32))
