"""Where a tensor lies in a model's depth, found from names alone: no table of architectures.

A *tower* is a run of blocks that are numbered in the tensors' names: `model.layers.0.…`, `model.layers.1.…`. Its number
is the first whole number among the parts of a name; the parts before it name the tower. Numbers make a tower only if
they run from 0 without a gap, at least to 1, and the blocks are alike: half of the smallest one's tensors are in every
block. (Blocks need not be equal: the first one of T5 holds a tensor of its own, as do the dense ones among experts.)
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

FIRST_WORDS = ("embed", "wte", "wpe", "patch", "conv1", "stem")  # of tensors before the first block


@dataclass(frozen=True)
class Block:
    """The block that a tensor belongs to: number `index` of the `n_blocks` of a tower."""

    tower: str
    index: int
    n_blocks: int
    suffix: str  # the tensor's name within the block

    @property
    def position(self) -> float:
        """Position in the depth, in [0, 1]: 0 is the first block, 1 the last."""
        return self.index / (self.n_blocks - 1)


def find_blocks(names: Iterable[str]) -> dict[str, Block]:
    """Return tensor name -> block, for the tensors that belong to one."""
    towers: dict[str, dict[int, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for name in names:
        split = _split(name)
        if split is not None:
            tower, index, suffix = split
            towers[tower][index][suffix] = name
    return {
        name: Block(tower, index, len(blocks), suffix)
        for tower, blocks in towers.items()
        if _is_tower(blocks)
        for index, tensors in blocks.items()
        for suffix, name in tensors.items()
    }


def depth_of(name: str, blocks: Mapping[str, Block]) -> float:
    """Return a tensor's position in the depth, in [0, 1]: its block's; outside of blocks 0 for embeddings, else 1."""
    if name in blocks:
        return blocks[name].position
    return 0.0 if any(word in name.lower() for word in FIRST_WORDS) else 1.0


def interpolate(values: Sequence[float], position: float) -> float:
    """Return a gradient's value at a position in [0, 1]: linear between neighbors of the list."""
    place = position * (len(values) - 1)
    below = min(int(place), len(values) - 1)
    above = min(below + 1, len(values) - 1)
    return values[below] + (place - below) * (values[above] - values[below])


def _split(name: str) -> tuple[str, int, str] | None:
    parts = name.split(".")
    for at, part in enumerate(parts):
        if part.isdecimal() and part.isascii() and str(int(part)) == part:
            return ".".join(parts[:at]), int(part), ".".join(parts[at + 1 :])
    return None


def _is_tower(blocks: Mapping[int, Mapping[str, str]]) -> bool:
    if len(blocks) < 2 or max(blocks) != len(blocks) - 1:
        return False
    shared = set.intersection(*(set(tensors) for tensors in blocks.values()))
    return 2 * len(shared) >= min(map(len, blocks.values()))
