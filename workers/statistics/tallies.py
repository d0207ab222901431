"""Counts of keys within a window, piece by piece: exact as long as they are few, coarser when they would be many."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workers.numerics import fused
from workers.numerics.fused import Counts, Keys


@dataclass(frozen=True)
class Block:
    """What consecutive entries of a scope have within one window: the bins that occur, ascending, and how often."""

    first: int  # index within the scope
    behind: int
    bins: Keys
    counts: Counts


@dataclass(frozen=True)
class Count:
    """What was counted of one window: keys above it, and neighboring blocks of bins of 2^shift keys each."""

    n_above: int
    shift: int
    blocks: tuple[Block, ...]


class Tally:
    """What a pass has counted of one window so far, in at most so many numbers.

    Blocks, not one sum, so that a tie is found again by reading the block that holds it. When there are too many
    numbers, neighboring blocks are joined; when only one block is left, its bins are made coarser.
    """

    def __init__(self, max_counts: int) -> None:
        self.n_above = 0
        self.blocks: list[Block] = []
        self.shift = 0
        self._n_counts = 0
        self._max_counts = max_counts

    def add(self, count: Count) -> None:
        """Count what follows; counts come in the order of their indices.

        What is kept is copied, into memory of this thread: kept between the temporaries of a worker thread it would
        leave holes that nothing fits into, and memory would grow with the model after all.
        """
        self.n_above += count.n_above
        coarser = max(self.shift, count.shift)
        if coarser > self.shift:
            self.blocks = [_coarsen(block, coarser - self.shift) for block in self.blocks]
            self.shift = coarser
            self._n_counts = sum(len(block.bins) for block in self.blocks)
        added = [_coarsen(_copy(block), coarser - count.shift) for block in count.blocks]
        self.blocks += added
        self._n_counts += sum(len(block.bins) for block in added)
        while self._n_counts > self._max_counts:
            if len(self.blocks) == 1:
                self.shift += 1
                self.blocks = [_coarsen(self.blocks[0], 1)]
            else:
                self.blocks = [join(self.blocks[index : index + 2]) for index in range(0, len(self.blocks), 2)]
            self._n_counts = sum(len(block.bins) for block in self.blocks)

    @property
    def count(self) -> Count:
        """All that was counted."""
        return Count(self.n_above, self.shift, tuple(self.blocks))


def join(blocks: Sequence[Block]) -> Block:
    """Return neighboring blocks as one."""
    counts = [(block.bins, block.counts) for block in blocks]
    while len(counts) > 1:
        counts = [_join(counts[index : index + 2]) for index in range(0, len(counts), 2)]
    return Block(blocks[0].first, blocks[-1].behind, *counts[0])


def _join(counts: Sequence[tuple[Keys, Counts]]) -> tuple[Keys, Counts]:
    if len(counts) == 1:
        return counts[0]
    if fused.is_ready():
        return fused.join_counts(*counts)
    bins = np.concatenate([keys for keys, _ in counts])
    order = np.argsort(bins, kind="stable")  # merges runs that are sorted already
    return _sum_equal(bins[order], np.concatenate([one for _, one in counts])[order])


def count_bins(bins: Keys) -> tuple[Keys, Counts]:
    """Return the bins that occur, ascending, and how often each does; np.unique takes three times as long."""
    bins = np.sort(bins)
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    return bins[starts], np.diff(starts, append=len(bins))


def _copy(block: Block) -> Block:
    return Block(block.first, block.behind, block.bins.copy(), block.counts.copy())


def _coarsen(block: Block, shift: int) -> Block:
    return block if shift == 0 else Block(block.first, block.behind, *_sum_equal(block.bins >> shift, block.counts))


def _sum_equal(bins: Keys, counts: Counts) -> tuple[Keys, Counts]:
    """Return each of the ascending bins once, with the sum of its counts."""
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    return bins[starts], np.add.reduceat(counts, starts) if len(starts) else counts
