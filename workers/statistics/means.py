"""The mean magnitude of each task vector within each tensor, exact until it is rounded once."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from workers.contract import Piece, PieceSource
from workers.numerics import exact_sums, task_vectors


@dataclass(frozen=True)
class MeanMagnitudes:
    """Asks for mean |τᵢ| of each model within each tensor; 0 for a tensor without elements."""

    name: str

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set."""
        return 1

    def collect(self, source: PieceSource) -> Mapping[str, tuple[float, ...]]:
        """Return tensor -> one mean per model."""
        sums: dict[str, NDArray[np.int64]] = {}
        for tensor, found in source.map(_sum_piece):
            sums[tensor] = found if tensor not in sums else sums[tensor] + found
        sizes = {name: prod(shape) for name, shape, _ in source.tensors}
        nothing = (0.0,) * source.n_models
        return {name: _means(sums[name], size) if name in sums else nothing for name, size in sizes.items()}


def _sum_piece(piece: Piece) -> tuple[str, NDArray[np.int64]]:
    deltas = piece.finetuned if piece.base is None else task_vectors.subtract(piece.finetuned, piece.base)
    return piece.tensor, np.array([exact_sums.sum_magnitudes(delta) for delta in deltas])


def _means(sums: NDArray[np.int64], size: int) -> tuple[float, ...]:
    return tuple(float(exact_sums.to_fraction(one) / size) for one in sums)
