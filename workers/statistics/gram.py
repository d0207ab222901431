"""Inner products of all pairs of task vectors, in one pass: norms, cosines and what is solved from them.

Over the whole merge set as one number each, or tensor by tensor; without a base model the models themselves stand for
task vectors.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import torch
from torch import Tensor

from workers.contract import Piece, PieceSource
from workers.fusion import Rows
from workers.numerics import fused, precision, task_vectors
from workers.numerics.programs import PRODUCT_BLOCK
from workers.numerics.spans import Gram
from workers.statistics.streams import map_fused


def gram_matrix(source: PieceSource) -> Tensor:
    """Return the inner products τᵢ · τⱼ over the whole merge set, [n, n] float64; without a base model τ is the model.

    Tensors are added in the order of their names; see TensorGrams for each of them.
    """
    total = torch.zeros(source.n_models, source.n_models, dtype=torch.float64)
    for matrix in gram_matrices(source).values():
        total += matrix
    return total


def cosines(gram: Tensor) -> Tensor:
    """Return the cosines of a Gram matrix, [n, n] float64 in [-1, 1]; NaN where a vector is zero."""
    norms = gram.diagonal().sqrt()
    found = (gram / torch.outer(norms, norms)).clamp(-1.0, 1.0)
    found.diagonal().copy_(torch.where(norms > 0, 1.0, torch.nan))
    return found


def gram_matrices(source: PieceSource) -> dict[str, Tensor]:
    """Return the Gram matrix of each tensor by name, [n, n] float64 each; an empty tensor's is zero."""
    found = TensorGrams("").collect(source)
    zero = torch.zeros(source.n_models, source.n_models, dtype=torch.float64)
    return {
        name: torch.tensor(found[name], dtype=torch.float64) if name in found else zero for name, _, _ in source.tensors
    }


@dataclass(frozen=True)
class TensorGrams:
    """Asks for the Gram matrix of each tensor, flattened.

    The products are summed in blocks that begin at multiples of PRODUCT_BLOCK within the tensor, and the blocks one
    after the other: the bits depend neither on the pieces nor on the number of threads.
    """

    name: str
    of_weights: bool = False  # of the models themselves, also where there is a base model

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set."""
        return 1

    @property
    def is_local(self) -> bool:
        """Always: there is a matrix for each tensor."""
        return True

    def collect(self, source: PieceSource) -> Mapping[str, Gram]:
        """Return the Gram matrix of every tensor that has elements."""
        return add_products(map_fused(source, self._multiply_rows, self._multiply_piece))

    def _multiply_rows(self, rows: Rows) -> "Products":
        return Products(rows.tensor, *fused.multiply_blocks(rows.without_base() if self.of_weights else rows))

    def _multiply_piece(self, piece: Piece) -> "Products":
        return multiply(piece.tensor, piece.offset, _vectors(replace(piece, base=None) if self.of_weights else piece))


@dataclass(frozen=True)
class ColumnGrams:
    """Asks for the Gram matrices of the columns, along the first axis, of each tensor of 2 dimensions or more.

    The products of a column are added one after the other, whatever the pieces are.
    """

    name: str

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set."""
        return 1

    @property
    def is_local(self) -> bool:
        """Always: there is a matrix for each tensor."""
        return True

    def collect(self, source: PieceSource) -> Mapping[str, Tensor]:
        """Return the inner products by tensor, [n_columns, n, n] float64; columns in the order of a flattened row."""
        n = source.n_models
        sums = {
            name: torch.zeros(prod(shape[1:]), n, n, dtype=torch.float64)
            for name, shape, _ in source.tensors
            if len(shape) >= 2
        }
        parts = source.map(_multiply_entries, sums)
        for tensor, offset, products in parts:
            _add_to_columns(sums[tensor], offset, products)
        return sums


@dataclass(frozen=True)
class Products:
    """Of the vectors of one piece: the products of its whole blocks, and what lies before and behind them as it is."""

    tensor: str
    head: Tensor  # [n, h], h < PRODUCT_BLOCK: up to the next block's begin
    blocks: Tensor  # [n_blocks, n, n] float64
    tail: Tensor  # [n, t], t < PRODUCT_BLOCK

    def join(self, following: "Sequence[Products]") -> "Products":
        """Return the tensor's first pieces as one: added in the same order, they give the same sum."""
        summed = _BlockSum(torch.zeros(len(self.head), len(self.head), dtype=torch.float64))
        for part in (self, *following):
            summed.add(part)
        tail = torch.cat(summed.pending, dim=1)
        return Products(self.tensor, tail[:, :0], summed.total.unsqueeze(0), tail)


def multiply(tensor: str, offset: int, vectors: Tensor) -> Products:
    """Return the products of a tensor's vectors over a run of entries. vectors: [n, m] float32, from `offset` on."""
    n, m = vectors.shape
    begin = min(m, -offset % PRODUCT_BLOCK)
    end = m - (m - begin) % PRODUCT_BLOCK
    blocks = vectors[:, begin:end].reshape(n, (end - begin) // PRODUCT_BLOCK, PRODUCT_BLOCK)
    products = precision.inner_products(blocks)
    return Products(tensor, vectors[:, :begin].clone(), products, vectors[:, end:].clone())


def add_products(products: Iterable[Products]) -> dict[str, Gram]:
    """Return the Gram matrix of every tensor. products: of all its runs, in their order."""
    sums: dict[str, _BlockSum] = {}
    for some in products:
        if some.tensor not in sums:
            sums[some.tensor] = _BlockSum(torch.zeros(len(some.head), len(some.head), dtype=torch.float64))
        sums[some.tensor].add(some)
    return {name: block_sum.finish() for name, block_sum in sums.items()}


@dataclass
class _BlockSum:
    """The sum over one tensor's blocks so far, and the entries of the block that is not yet complete."""

    total: Tensor  # [n, n] float64
    pending: list[Tensor] = field(default_factory=list)

    def add(self, part: Products) -> None:
        """Add the tensor's next piece."""
        self.pending.append(part.head)
        if len(part.blocks) or part.tail.shape[-1]:
            self._complete_block()
        # accumulate adds one after the other, whatever there is
        self.total = torch.from_numpy(np.add.accumulate(np.concatenate((self.total[None], part.blocks)))[-1])
        self.pending.append(part.tail)

    def finish(self) -> Gram:
        """Return the Gram matrix; the tensor's end completes its last block."""
        self._complete_block()
        gram: Gram = self.total.tolist()
        return gram

    def _complete_block(self) -> None:
        block = torch.cat(self.pending, dim=1) if self.pending else self.total.new_empty(0, 0)
        self.pending.clear()
        if block.shape[-1]:
            self.total += precision.inner_products(block)


def _add_to_columns(total: Tensor, offset: int, products: Tensor) -> None:
    # products: [m, n, n], of a run of entries whose first has this flat index
    n_columns, m = len(total), len(products)
    done = 0
    while done < m:
        column = (offset + done) % n_columns
        run = min(n_columns - column, m - done)
        total[column : column + run] += products[done : done + run]
        done += run


def _multiply_entries(piece: Piece) -> tuple[str, int, Tensor]:
    return piece.tensor, piece.offset, precision.inner_products(_vectors(piece).unsqueeze(-1))  # [m, n, n]


def _vectors(piece: Piece) -> Tensor:
    return piece.finetuned if piece.base is None else task_vectors.subtract(piece.finetuned, piece.base)
