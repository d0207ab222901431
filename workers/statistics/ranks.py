"""Exact selection by rank among magnitudes that are never held: a sample says where to look, one pass counts there.

Magnitudes are compared as integers, their *keys* (rank_keys.py). A small scope is held. In a large one, a *window* of
keys is guessed for each rank from a sample (rank_samples.py); a pass counts within it, and finds the rank or leaves a
smaller window, or one beside it, to another pass (rank_windows.py). Of entries with the key that is found, the last one
within the rank is looked up (rank_ties.py). Nearly always one pass does; memory is bounded by constants.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from workers.contract import PieceSource
from workers.numerics.fused import Keys
from workers.numerics.sparsify import EVERYTHING, NOTHING, Boundary
from workers.statistics.rank_keys import keys_of, magnitude_of
from workers.statistics.rank_samples import guess_windows
from workers.statistics.rank_scopes import Effort, Scope
from workers.statistics.rank_ties import Tie, find_ties
from workers.statistics.rank_windows import Window, count_windows, settle

ModelBoundaries = tuple[tuple[Boundary, ...], ...]  # per model, one boundary per rank
Found = Iterator[tuple[tuple[int, int, int], Boundary]]  # (scope, model, rank), and its boundary


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
    large = [index for index in searched if scopes[index].n_elements > effort.small_scope]
    found = dict(_select_held(source, scopes, small)) if small else {}
    if large:
        found.update(_select_counted(source, scopes, large, effort, is_placed=is_placed))
    return [_boundaries(index, scope, source.n_models, found) for index, scope in enumerate(scopes)]


def _boundaries(
    index: int, scope: Scope, n_models: int, found: Mapping[tuple[int, int, int], Boundary]
) -> ModelBoundaries:
    def boundary(model: int, rank: int) -> Boundary:
        if rank <= 0:
            return NOTHING
        return EVERYTHING if rank >= scope.n_elements else found[index, model, rank]

    return tuple(tuple(boundary(model, rank) for rank in scope.ranks) for model in range(n_models))


def _select_held(source: PieceSource, scopes: Sequence[Scope], indices: Sequence[int]) -> Found:
    """Yield the boundaries of scopes whose keys are held, one scope after the other."""
    for index, keys in _hold(source, scopes, indices):
        for model, row in enumerate(keys):
            for rank in scopes[index].searched_ranks:
                yield (index, model, rank), _select_one(row, rank)


def _hold(source: PieceSource, scopes: Sequence[Scope], indices: Sequence[int]) -> Iterator[tuple[int, Keys]]:
    """Yield each scope's keys, [n_models, n_elements]; scopes come one after the other."""
    scope_of = {name: index for index in indices for name, _, _ in scopes[index].tensors}
    held: list[Keys] = []
    for name, keys in source.map(lambda piece: (piece.tensor, keys_of(piece)), scope_of):
        held.append(keys)
        index = scope_of[name]
        if sum(part.shape[1] for part in held) == scopes[index].n_elements:
            yield index, np.concatenate(held, axis=1)
            held = []


def _select_one(keys: Keys, rank: int) -> Boundary:
    key = int(np.partition(keys, len(keys) - rank)[len(keys) - rank])
    n_ties = rank - int(np.count_nonzero(keys > key))
    return Boundary(magnitude_of(key), int(np.flatnonzero(keys == key)[n_ties - 1]) + 1)


def _select_counted(
    source: PieceSource, scopes: Sequence[Scope], indices: Sequence[int], effort: Effort, *, is_placed: bool
) -> Found:
    """Yield the boundaries of scopes in which windows are counted, by as many passes as it takes."""
    windows = source.once(lambda: guess_windows(source, scopes, indices, effort))
    ties: list[tuple[int, Tie]] = []  # each with the index of its scope
    while windows:
        open_windows: dict[int, list[Window]] = {}
        for index, tallies in count_windows(source, scopes, windows, effort):
            for window, tally in zip(windows[index], tallies, strict=True):
                settled = settle(window, tally)
                if isinstance(settled, Tie):
                    ties.append((index, settled))
                else:
                    open_windows.setdefault(index, []).append(settled)
        windows = open_windows
    places = find_ties(source, scopes, ties) if is_placed else [0] * len(ties)
    for (index, tie), behind in zip(ties, places, strict=True):
        yield (index, tie.model, tie.rank), Boundary(magnitude_of(tie.key), behind)
