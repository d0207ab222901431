import numpy as np
import pytest

from workers.checkpoints.memory import LARGEST_LENT_BYTES, PAGE_BYTES, Blocks


def test_a_block_that_came_back_is_lent_again() -> None:
    blocks = Blocks()
    lent = blocks.lend(1000)
    blocks.take_back(lent)
    assert np.shares_memory(blocks.lend(10), lent)
    assert not np.shares_memory(blocks.lend(10), lent)  # nobody else's while it is lent


def test_a_block_is_lent_again_whole() -> None:
    blocks = Blocks()
    lent = blocks.lend(1000)
    blocks.take_back(lent)
    blocks.take_back(blocks.lend(10))
    again = blocks.lend(1000)
    assert len(again) == 1000
    assert np.shares_memory(again, lent)


def test_a_block_is_as_large_as_it_must_be() -> None:
    blocks = Blocks()
    blocks.take_back(blocks.lend(10))
    assert len(blocks.lend(1_000_000)) == 1_000_000


def test_a_block_of_a_whole_tensor_is_let_go() -> None:
    blocks = Blocks()
    large = blocks.lend(LARGEST_LENT_BYTES + 1)
    blocks.take_back(large)
    assert not np.shares_memory(blocks.lend(10), large)
    largest = blocks.lend(LARGEST_LENT_BYTES)
    blocks.take_back(largest)
    assert np.shares_memory(blocks.lend(10), largest)


@pytest.mark.parametrize("position", [0, 2, 4, 8, PAGE_BYTES - 8, 3 * PAGE_BYTES, 10 * PAGE_BYTES + 72])
def test_bytes_lie_as_their_position_in_a_file(position: int) -> None:
    blocks = Blocks()
    for _ in range(2):  # new, and lent again
        lent = blocks.lend(1000, position)
        assert len(lent) == 1000
        assert lent.ctypes.data % PAGE_BYTES == position % PAGE_BYTES
        blocks.take_back(lent)
