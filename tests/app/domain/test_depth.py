"""Where tensors lie in the depth: numbered blocks are found, other numbers are not taken for blocks."""

import pytest

from app.domain.depth import depth_of, find_blocks, interpolate

LLAMA = [
    "model.embed_tokens.weight",
    *(f"model.layers.{index}.{part}" for index in range(3) for part in ("mlp.weight", "norm.weight")),
    "model.norm.weight",
    "lm_head.weight",
]


def test_blocks_are_found_with_tower_number_and_suffix() -> None:
    block = find_blocks(LLAMA)["model.layers.1.mlp.weight"]
    assert (block.tower, block.index, block.n_blocks, block.suffix) == ("model.layers", 1, 3, "mlp.weight")


def test_depth_runs_from_the_first_block_to_the_last() -> None:
    blocks = find_blocks(LLAMA)
    assert [depth_of(f"model.layers.{index}.norm.weight", blocks) for index in range(3)] == [0.0, 0.5, 1.0]


def test_outside_of_blocks_embeddings_come_first_and_the_rest_last() -> None:
    blocks = find_blocks(LLAMA)
    assert depth_of("model.embed_tokens.weight", blocks) == 0.0
    assert depth_of("model.norm.weight", blocks) == depth_of("lm_head.weight", blocks) == 1.0


def test_each_tower_counts_its_own_blocks() -> None:
    names = [f"text.layers.{index}.w" for index in range(2)] + [f"vision.layers.{index}.w" for index in range(5)]
    blocks = find_blocks(names)
    assert {blocks[name].n_blocks for name in names if name.startswith("text")} == {2}
    assert {blocks[name].n_blocks for name in names if name.startswith("vision")} == {5}


def test_the_first_number_counts_not_an_experts() -> None:
    names = [f"layers.{index}.experts.{expert}.w" for index in range(2) for expert in range(4)]
    assert find_blocks(names)["layers.1.experts.3.w"].index == 1


def test_a_first_block_with_a_tensor_of_its_own_is_a_block() -> None:
    names = [f"block.{index}.{part}" for index in range(2) for part in ("q", "k", "v")] + ["block.0.bias"]
    assert find_blocks(names)["block.0.bias"].n_blocks == 2


@pytest.mark.parametrize(
    "names",
    [
        ["head.0.weight", "head.2.weight"],  # a gap: a Sequential with an activation between
        ["layers.0.w"],  # one block is no depth
        ["layers.1.w", "layers.2.w"],  # does not begin at 0
        ["net.0.conv.weight", "net.1.norm.scale"],  # nothing in common
        ["layers.00.w", "layers.01.w"],  # not how a number is written
        ["weight", "bias"],
    ],
)
def test_other_numbers_are_no_blocks(names: list[str]) -> None:
    assert find_blocks(names) == {}


@pytest.mark.parametrize(("position", "value"), [(0.0, 1.0), (0.25, 1.5), (0.5, 2.0), (0.75, 1.0), (1.0, 0.0)])
def test_a_gradient_is_linear_between_neighbors(position: float, value: float) -> None:
    assert interpolate([1.0, 2.0, 0.0], position) == value
