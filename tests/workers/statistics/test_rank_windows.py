"""Windows that ranks are looked for in: where the next one lies, and what parts of a merge have counted in them."""

import numpy as np
import pytest

from workers.statistics import rank_windows
from workers.statistics.rank_windows import Counted, Window, settle
from workers.statistics.tallies import Block, Count, Tally, count_bins


def test_a_window_that_misses_is_followed_by_one_beside_it() -> None:
    window = Window(0, rank=10, low=100, high=109)
    above, below = Tally(16), Tally(16)
    block = Block(0, 50, *count_bins(np.zeros(1, dtype=np.int32)))
    above.add(Count(12, 0, (block,)))
    below.add(Count(2, 0, (block,)))
    assert settle(window, above) == Window(0, 10, 110, 109 + 160)
    assert settle(window, below) == Window(0, 10, 0, 99)


def test_what_a_part_has_counted_does_not_grow_with_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_windows, "MIN_JOINED_COUNTS", 64)
    random = np.random.default_rng(0)
    pieces = []
    for first in range(0, 20_000, 100):
        bins = random.integers(0, 10**6, 100).astype(np.int32)
        pieces.append(Counted(0, 0.01, (Count(2, 0, (Block(first, first + 100, *count_bins(bins)),)),)))
    joined = pieces[0].join(pieces[1:])
    (count,) = joined.counts
    assert (joined.scope, joined.behind, count.n_above) == (0, 20_000, 400)
    assert sum(len(one.bins) for one in count.blocks) <= 0.01 * 20_000
    assert sum(int(one.counts.sum()) for one in count.blocks) == 20_000
