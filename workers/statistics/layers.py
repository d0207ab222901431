"""Tensors grouped by the layer they lie in, in the order of the depth: what is told of each layer of a model."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field

from app.domain.depth import Block, depth_of, find_blocks

FIRST = "first"
LAST = "last"


class Layer(BaseModel):
    """One layer: a block of a tower, what lies before the blocks or behind them, or where there are none a tensor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="`tower.index`, `first`, `last`, or a tensor's name.")
    tower: str | None = Field(default=None, description="Of a block: the part of its tensors' names before the number.")
    index: int | None = Field(default=None, description="Of a block: its number, from 0.")


def list_layers(names: Iterable[str]) -> dict[Layer, tuple[str, ...]]:
    """Return layer -> its tensors: what lies before the blocks, the towers' blocks in order, what lies behind them.

    Where no tensor lies in a block, each one is a layer of its own.
    """
    ordered = sorted(names)
    blocks = find_blocks(ordered)
    if not blocks:
        return {Layer(name=name): (name,) for name in ordered}
    found: dict[Layer, list[str]] = {}
    for name in ordered:
        found.setdefault(_layer_of(name, blocks), []).append(name)
    return {layer: tuple(found[layer]) for layer in sorted(found, key=_place)}


def _layer_of(name: str, blocks: dict[str, Block]) -> Layer:
    if name not in blocks:
        return Layer(name=FIRST if depth_of(name, blocks) == 0.0 else LAST)
    block = blocks[name]
    return Layer(name=f"{block.tower}.{block.index}".lstrip("."), tower=block.tower, index=block.index)


def _place(layer: Layer) -> tuple[int, str, int]:
    if layer.index is None:
        return (0 if layer.name == FIRST else 2, "", 0)
    return (1, layer.tower or "", layer.index)
