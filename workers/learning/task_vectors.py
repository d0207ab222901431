"""The task vectors of a merge set in blocks, kept in memory as far as they fit, else read again at every step.

Blocks are cut at fixed places, so that what is summed over them does not depend on how a merge cuts its pieces.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import Tensor

from app.domain.plans import KEPT_TASK_VECTOR_BYTES
from workers.contract import PieceSource
from workers.numerics import task_vectors

BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Block:
    """A run of elements of one tensor."""

    offset: int  # flat index within the tensor
    base: Tensor  # [m] float32
    deltas: Tensor  # [n, m] float32


class TaskVectors:
    """The base and the task vectors of each tensor of a merge set, on the CPU."""

    def __init__(self, source: PieceSource, *, kept_bytes: int = KEPT_TASK_VECTOR_BYTES) -> None:
        self._source = source
        self._left_bytes = kept_bytes
        self._kept: dict[str, list[Block]] = {}
        self.n_models = source.n_models
        self.shapes = {name: shape for name, shape, _ in source.tensors}

    def blocks(self, name: str) -> Iterator[Block]:
        """Yield a tensor's blocks in order."""
        if name in self._kept:
            yield from self._kept[name]
            return
        n = prod(self.shapes[name])
        n_bytes = 4 * n * (1 + self.n_models)
        read = (self._read(name, at, min(BLOCK_ELEMENTS, n - at)) for at in range(0, n, BLOCK_ELEMENTS))
        if n_bytes > self._left_bytes:
            yield from read
            return
        self._left_bytes -= n_bytes
        self._kept[name] = list(read)
        yield from self._kept[name]

    def _read(self, name: str, offset: int, n_elements: int) -> Block:
        piece = self._source.read(name, offset, n_elements)
        if piece.base is None:
            raise ValueError("task vectors are counted from a base model; the source has none")
        return Block(offset, piece.base, task_vectors.subtract(piece.finetuned, piece.base))
