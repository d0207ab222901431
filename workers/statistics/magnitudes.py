"""Exact magnitude ranks of task vectors, without holding a model: where the r-th largest entry lies.

A global scope counts in three passes (16 high bits of |τ|, 16 low bits, position of the ties); a tensor scope holds one
tensor at a time.

Source: radix selection; the bits of non-negative float32 numbers are ordered like the numbers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from workers.contract import Piece, PieceSource
from workers.numerics import task_vectors
from workers.numerics.sparsify import EVERYTHING, NOTHING, Boundary

__all__ = ["Boundary", "BoundaryTable", "MagnitudeBoundaries"]

N_HIGH = 1 << 15  # the sign bit of a magnitude is never set
N_LOW = 1 << 16

ModelBoundaries = tuple[tuple[Boundary, ...], ...]  # per model, one boundary per rank


@dataclass(frozen=True)
class BoundaryTable:
    """What the request found: the boundaries of the whole merge set, or of each tensor."""

    everywhere: ModelBoundaries | None  # global scope
    by_tensor: Mapping[str, ModelBoundaries]  # tensor scope

    def of(self, tensor: str) -> ModelBoundaries:
        """Return, per model, the boundaries that hold for a tensor.

        Indices count from the start of the merge set in global scope, of the tensor in tensor scope.
        """
        return self.by_tensor[tensor] if self.everywhere is None else self.everywhere


@dataclass(frozen=True)
class MagnitudeBoundaries:
    """Asks for the boundaries of ranks in the order (|τ| descending, flat index ascending), for each model.

    `ranks` gives, from the number of entries in the scope, the ranks wanted.
    """

    name: str
    scope: Literal["global", "tensor"]
    ranks: Callable[[int], tuple[int, ...]]

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set."""
        return 3 if self.scope == "global" else 1

    def collect(self, source: PieceSource) -> BoundaryTable:
        """Find the boundaries."""
        if self.scope == "global":
            n = sum(prod(shape) for _, shape, _ in source.tensors)
            return BoundaryTable(_select_globally(source, self.ranks(n), n), {})
        return BoundaryTable(None, dict(_select_by_tensor(source, self.ranks)))


def _select_by_tensor(
    source: PieceSource, ranks: Callable[[int], tuple[int, ...]]
) -> Iterator[tuple[str, ModelBoundaries]]:
    sizes = {name: prod(shape) for name, shape, _ in source.tensors}
    for name, size in sizes.items():
        if size == 0:
            yield name, tuple(tuple(_trivial(rank, 0) for rank in ranks(0)) for _ in range(source.n_models))
    parts: list[Tensor] = []
    for name, part in source.map(lambda piece: (piece.tensor, _magnitudes(piece))):
        parts.append(part)
        if sum(part.shape[1] for part in parts) == sizes[name]:
            whole = torch.cat(parts, dim=1)  # [n, size]
            yield name, tuple(_select_in_memory(row, ranks(sizes[name])) for row in whole)
            parts = []


def _select_in_memory(magnitudes: Tensor, ranks: Sequence[int]) -> tuple[Boundary, ...]:
    order = magnitudes.sort(descending=True, stable=True)
    n = magnitudes.numel()
    return tuple(
        Boundary(float(order.values[rank - 1]), int(order.indices[rank - 1]) + 1) if 0 < rank < n else _trivial(rank, n)
        for rank in ranks
    )


def _trivial(rank: int, n: int) -> Boundary:
    return EVERYTHING if rank >= n else NOTHING


def _select_globally(source: PieceSource, ranks: tuple[int, ...], n: int) -> ModelBoundaries:
    wanted = [(model, rank) for model in range(source.n_models) for rank in ranks if 0 < rank < n]
    if not wanted:
        return (tuple(_trivial(rank, n) for rank in ranks),) * source.n_models
    high = _total(source, _count_high_bits)  # [n_models, N_HIGH]
    buckets = [(model, *_bucket(high[model], rank)) for model, rank in wanted]  # (model, high bits, rank in the bucket)
    low = _total(source, lambda piece: _count_low_bits(piece, buckets))  # [n_wanted, N_LOW]
    cuts = []  # (model, magnitude, ties kept)
    for (model, high_bits, rank), counts in zip(buckets, low, strict=True):
        low_bits, n_ties = _bucket(counts, rank)
        magnitude = torch.tensor(high_bits << 16 | low_bits, dtype=torch.int32).view(torch.float32).item()
        cuts.append((model, magnitude, n_ties))
    found = dict(zip(wanted, _find_ties(source, cuts), strict=True))
    return tuple(
        tuple(found.get((model, rank)) or _trivial(rank, n) for rank in ranks) for model in range(source.n_models)
    )


def _find_ties(source: PieceSource, cuts: Sequence[tuple[int, float, int]]) -> list[Boundary]:
    """Return the boundary right behind the last tie that is kept."""
    n_missing = [n_ties for _, _, n_ties in cuts]
    indices = [0] * len(cuts)
    for position, positions in source.map(lambda piece: (piece.position, _find_equal(piece, cuts))):
        for row, equal in enumerate(positions):
            if 0 < n_missing[row] <= len(equal):
                indices[row] = position + int(equal[n_missing[row] - 1]) + 1
            n_missing[row] -= len(equal)
    return [Boundary(magnitude, index) for (_, magnitude, _), index in zip(cuts, indices, strict=True)]


def _magnitudes(piece: Piece) -> Tensor:
    finetuned = piece.finetuned
    return (finetuned if piece.base is None else task_vectors.subtract(finetuned, piece.base)).abs()  # [n, m]


def _total(source: PieceSource, count: Callable[[Piece], Tensor]) -> Tensor:
    parts = source.map(count)
    total = next(parts)
    for part in parts:
        total += part
    return total


def _count_high_bits(piece: Piece) -> Tensor:
    bits = _magnitudes(piece).view(torch.int32) >> 16
    return torch.stack([torch.bincount(row, minlength=N_HIGH) for row in bits])


def _count_low_bits(piece: Piece, buckets: Sequence[tuple[int, int, int]]) -> Tensor:
    bits = _magnitudes(piece).view(torch.int32)
    counts = torch.zeros((len(buckets), N_LOW), dtype=torch.int64)
    for row, (model, high_bits, _) in enumerate(buckets):
        low_bits = bits[model][bits[model] >> 16 == high_bits] & (N_LOW - 1)
        counts[row] = torch.bincount(low_bits, minlength=N_LOW)
    return counts


def _find_equal(piece: Piece, cuts: Sequence[tuple[int, float, int]]) -> list[Tensor]:
    magnitudes = _magnitudes(piece)
    return [(magnitudes[model] == magnitude).nonzero().flatten() for model, magnitude, _ in cuts]


def _bucket(counts: Tensor, rank: int) -> tuple[int, int]:
    """Return the bucket that holds the rank-th largest entry, and its rank within that bucket."""
    from_above = counts.flip(0).cumsum(0)
    behind = int(torch.searchsorted(from_above, rank))
    before = int(from_above[behind - 1]) if behind else 0
    return len(counts) - 1 - behind, rank - before
