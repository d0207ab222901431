from workers.checkpoints.memory import LARGEST_LENT_BYTES, Blocks


def test_a_block_that_came_back_is_lent_again_whole() -> None:
    blocks = Blocks()
    block = blocks.lend(1000)
    blocks.take_back(block)
    assert blocks.lend(10) is block
    assert blocks.lend(10) is not block  # nobody else's while it is lent


def test_a_block_is_as_large_as_it_must_be() -> None:
    blocks = Blocks()
    blocks.take_back(blocks.lend(10))
    assert len(blocks.lend(1000)) == 1000


def test_a_block_of_a_whole_tensor_is_let_go() -> None:
    blocks = Blocks()
    large = blocks.lend(LARGEST_LENT_BYTES + 1)
    blocks.take_back(large)
    assert blocks.lend(10) is not large
