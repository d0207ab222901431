"""Where a rank ends among equal magnitudes: the block that holds its last one is read again, and nothing else.

A pass counts block by block (tallies.py), so that it tells which block that is, and which of the block's ties.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.checkpoints import parallel
from workers.contract import PieceSource
from workers.fusion import NotClean
from workers.numerics import fused
from workers.statistics.rank_keys import keys_of
from workers.statistics.rank_scopes import Scope
from workers.statistics.tallies import Block

TIE_READ_ELEMENTS = 1 << 19
TIE_PIECE_ELEMENTS = 1 << 16  # of these at once, where no kernel reads: all models are in memory then, some times over


@dataclass(frozen=True)
class Tie:
    """The n-th entry of one model that has a key, counted from the start of a block: the last one of a rank."""

    model: int
    rank: int
    key: int
    n_ties: int
    block: Block


def find_ties(source: PieceSource, scopes: Sequence[Scope], ties: Sequence[tuple[int, Tie]]) -> Iterator[int]:
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


def _runs_between(scope: Scope, first: int, behind: int) -> Iterator[tuple[str, int, int, int]]:
    """Yield (tensor, offset, elements, index within the scope) of runs that cover the indices [first, behind)."""
    for name, size, start in scope.tensors:
        for begin in range(max(first, start), min(behind, start + size), TIE_READ_ELEMENTS):
            yield name, begin - start, min(TIE_READ_ELEMENTS, behind - begin, start + size - begin), begin


def _find_keys(source: PieceSource, tie: Tie, run: tuple[str, int, int], start: int) -> NDArray[np.int64]:
    """Return the indices right behind the first entries of a run that have the tie's key; `start`: of the run."""
    rows = source.rows(*run) if fused.is_ready() else None
    if rows is not None:
        with suppress(NotClean):
            return fused.find_keys(rows.of_model(tie.model), tie.key, tie.n_ties) + (start + 1)
    tensor, offset, n_elements = run
    found = [np.empty(0, dtype=np.int64)]
    for begin in range(0, n_elements, TIE_PIECE_ELEMENTS):
        piece = source.read(tensor, offset + begin, min(TIE_PIECE_ELEMENTS, n_elements - begin))
        found.append(np.flatnonzero(keys_of(piece)[tie.model] == tie.key) + (start + begin + 1))
        if sum(map(len, found)) >= tie.n_ties:
            break
    return np.concatenate(found)[: tie.n_ties]


def _find_tie(tie: Tie, runs: Iterator[NDArray[np.int64]]) -> int:
    """Return the index right behind a tie. runs: what `_find_keys` finds in its block, as far as it is asked for."""
    missing = tie.n_ties
    for behind in runs:
        if missing <= len(behind):
            return int(behind[missing - 1])
        missing -= len(behind)
    raise ValueError(f"{missing} ties are missing from entries {tie.block.first} to {tie.block.behind}")
