"""Counts of keys: exact while they fit, joined and then coarser when they do not, never lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.numerics import fused
from workers.statistics.tallies import Block, Count, Tally, join


def block(first: int, keys: list[int]) -> Block:
    bins, counts = np.unique(np.array(keys, dtype=np.int32), return_counts=True)
    return Block(first, first + len(keys), bins, counts)


def test_few_counts_stay_as_they_came() -> None:
    tally = Tally(max_counts=10)
    tally.add(Count(3, 0, (block(0, [5, 5, 7]),)))
    tally.add(Count(1, 0, (block(3, [7]),)))
    assert tally.n_above == 4
    assert [(b.first, b.behind, b.bins.tolist(), b.counts.tolist()) for b in tally.blocks] == [
        (0, 3, [5, 7], [2, 1]),
        (3, 4, [7], [1]),
    ]


def test_neighbors_are_joined_when_there_are_too_many() -> None:
    tally = Tally(max_counts=3)
    for first in range(0, 8, 2):
        tally.add(Count(0, 0, (block(first, [5, 7]),)))
    assert [(b.first, b.behind) for b in tally.blocks] == [(0, 8)]
    assert tally.blocks[0].counts.tolist() == [4, 4]
    assert tally.shift == 0


def test_one_block_with_too_many_bins_becomes_coarser() -> None:
    tally = Tally(max_counts=2)
    tally.add(Count(0, 0, (block(0, [0, 1, 2, 3, 4, 5, 6, 7]),)))
    assert (tally.shift, tally.blocks[0].bins.tolist(), tally.blocks[0].counts.tolist()) == (2, [0, 1], [4, 4])
    tally.add(Count(0, 0, (block(8, [6]),)))
    assert tally.blocks[-1].bins.tolist() == [0, 1]
    assert tally.blocks[-1].counts.tolist() == [4, 5]


@given(
    pieces=st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=20), min_size=1, max_size=20), limit=st.integers(1, 30)
)
def test_every_key_is_counted_once_in_its_bin(pieces: list[list[int]], limit: int) -> None:
    tally = Tally(limit)
    first = 0
    for piece in pieces:
        tally.add(Count(0, 0, (block(first, piece),)))
        first += len(piece)
    total = join(tally.blocks)
    keys = np.array([key for piece in pieces for key in piece], dtype=np.int64) >> tally.shift
    bins, counts = np.unique(keys, return_counts=True)
    assert total.bins.tolist() == bins.tolist()
    assert total.counts.tolist() == counts.tolist()
    assert (tally.blocks[0].first, tally.blocks[-1].behind) == (0, first)
    assert sum(len(b.bins) for b in tally.blocks) <= max(limit, 1)


@given(
    groups=st.lists(
        st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9), min_size=1, max_size=5),
        min_size=1,
        max_size=5,
    ),
    limits=st.lists(st.integers(1, 30), min_size=6, max_size=6),
)
def test_what_several_have_counted_is_what_one_would_have(groups: list[list[list[int]]], limits: list[int]) -> None:
    whole = Tally(limits[-1])
    first = 0
    for pieces, limit in zip(groups, limits, strict=False):
        part = Tally(limit)
        for piece in pieces:
            part.add(Count(1, 0, (block(first, piece),)))
            first += len(piece)
        whole.add(part.count)
    total = join(whole.blocks)
    keys = np.array([key for pieces in groups for piece in pieces for key in piece], dtype=np.int64) >> whole.shift
    bins, counts = np.unique(keys, return_counts=True)
    assert total.bins.tolist() == bins.tolist()
    assert total.counts.tolist() == counts.tolist()
    assert whole.n_above == sum(len(pieces) for pieces in groups)
    assert (whole.blocks[0].first, whole.blocks[-1].behind) == (0, first)


@given(lists=st.lists(st.lists(st.integers(0, 40), max_size=30), min_size=1, max_size=6))
def test_blocks_are_joined_by_kernels_as_by_numpy(lists: list[list[int]]) -> None:
    assert fused.load()
    blocks = [block(10 * index, keys) for index, keys in enumerate(lists)]
    for one in blocks:
        one.bins.flags.writeable = False  # as those of other parts
    found = join(blocks)
    with pytest.MonkeyPatch.context() as without:
        without.setattr(fused, "_loaded", [])
        expected = join(blocks)
    assert (found.bins.dtype, found.counts.dtype) == (expected.bins.dtype, expected.counts.dtype)
    assert (found.bins.tolist(), found.counts.tolist()) == (expected.bins.tolist(), expected.counts.tolist())
    assert (found.first, found.behind) == (expected.first, expected.behind)
