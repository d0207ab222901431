"""LiNeS: scale the merged task vector by depth, little in early blocks, more in late ones.

Source: Wang et al. 2024, arXiv:2410.17146, equation 4.
Departs from source: a tensor's block is found from the numbering of all names, tower by tower, where the authors' code
    looks for ".i." anywhere in a name (app/domain/depth.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, sqrt
from typing import Annotated

import torch
from pydantic import Field, JsonValue
from torch import Tensor

from app.domain.depth import Block, find_blocks
from app.domain.errors import InvalidParameters
from app.domain.parameters import Parameters
from workers.contract import MergeContext, Piece, PieceSource, StatisticRequest, post_step
from workers.numerics import depth, precision, task_vectors
from workers.statistics import gram

DEPTHS = "depths"


class LinesParameters(Parameters):
    """Parameters of `lines`."""

    first: Annotated[
        float | None,
        Field(
            ge=-10.0,
            le=10.0,
            description="Factor of the first block and of all outside of blocks; null: norm of the sum of task vectors "
            "by norm of the merged one by number of models.",
        ),
    ] = None
    slope: Annotated[float, Field(ge=-10.0, le=10.0, description="What the last block's factor has more.")] = 0.5


@dataclass(frozen=True)
class Depths:
    """Where each tensor lies, and the factor of the first block."""

    blocks: dict[str, Block]
    first: float

    def report(self) -> JsonValue:
        """Return the factor, and how many blocks each tower has."""
        return {"first": self.first, "towers": {block.tower: block.n_blocks for block in self.blocks.values()}}


@dataclass(frozen=True)
class DepthsRequest:
    """Asks for the blocks, and for the factor of the first one where it is not given."""

    first: float | None
    name: str = DEPTHS

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set, merging as it goes."""
        return 0 if self.first is not None else 1

    def collect(self, source: PieceSource) -> Depths:
        """Find the blocks and measure the norms.

        Raises: InvalidParameters when no tensor's name numbers a block.
        """
        blocks = find_blocks([name for name, _, _ in source.tensors])
        if not blocks:
            raise InvalidParameters(
                "lines scales by depth, but no tensor's name numbers the model's blocks; leave the post-step out."
            )
        if self.first is not None:
            return Depths(blocks, self.first)
        products = gram.add_products(source.map(_multiply))
        of_sum, of_merged = (sqrt(fsum(matrix[row][row] for matrix in products.values())) for row in (0, 1))
        return Depths(blocks, depth.first_scale(of_sum, of_merged, source.n_models))


def collect(parameters: LinesParameters) -> Sequence[StatisticRequest]:
    """Ask where the tensors lie."""
    return (DepthsRequest(parameters.first),)


@post_step(
    name="lines",
    title="LiNeS",
    summary="Scales the merged task vector by depth: little in early blocks, more in late ones.",
    source="Wang et al. 2024, arXiv:2410.17146",
    version=2,
    parameters=LinesParameters,
    granularity="element",
    statistic_passes=1,
    collect=collect,
)
def apply(
    base: Tensor, _finetuned: Tensor, merged: Tensor, parameters: LinesParameters, context: MergeContext
) -> Tensor:
    """Return θ₀ + (first + slope · l / (L − 1)) (θ − θ₀) for a tensor of block l of L.

    base, merged: [m]; result: [m].
    """
    depths: Depths = context.statistics[DEPTHS]
    block = depths.blocks.get(context.tensor)
    layer, n_layers = (None, 1) if block is None else (block.index, block.n_blocks)
    return depth.scale_change(
        base, merged, depth.scale_of_layer(layer, n_layers, first=depths.first, slope=parameters.slope)
    )


def _multiply(piece: Piece) -> gram.Products:
    """Return the inner products of two vectors on a piece: the sum of task vectors, and what was merged of them."""
    if piece.base is None or piece.merged is None:
        raise ValueError("a post-step sees base and merged tensors")
    total = torch.zeros_like(piece.base, dtype=torch.float64)
    for model in piece.models:
        total.add_(task_vectors.subtract(model, piece.base))
    vectors = torch.stack((precision.round_to_float32(total), task_vectors.subtract(piece.merged, piece.base)))
    return gram.multiply(piece.tensor, piece.offset, vectors)
