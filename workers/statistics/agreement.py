"""How much of each task vector's length survives the mask over the unified one: the factors that restore it.

Source: Huang et al. 2024, arXiv:2405.17461, section 3.2 (rescale).
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workers.contract import Piece, PieceSource
from workers.numerics import exact_sums, task_vectors, unification

Sums = NDArray[np.int64]  # [n, 2, 256]: per model, of |τ| and of the unified entries its mask keeps


@dataclass(frozen=True)
class RestoringFactors:
    """Asks for Σ|τᵢ| / Σ|Mᵢ ⊙ τ_unified| of each model: 1 where nothing is lost, 0 where the mask keeps nothing.

    "global" sums over all entries; "tensor_mean" sums the means of the tensors, so that small ones count as much as
    large ones. Sums are exact, so no cut into pieces shows.
    """

    name: str
    scope: Literal["global", "tensor_mean"]

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set."""
        return 1

    def collect(self, source: PieceSource) -> tuple[float, ...]:
        """Return one factor per model."""
        totals = _Totals(source.n_models, self.scope)
        for tensor, n_elements, sums in source.map(_sum_piece):
            totals.add(tensor, n_elements, sums)
        return totals.factors()


def _sum_piece(piece: Piece) -> tuple[str, int, Sums]:
    if piece.base is None:
        raise ValueError("task vectors are differences from a base model")
    deltas = task_vectors.subtract(piece.finetuned.double(), piece.base.double())  # [n, m], exact
    unified = unification.elect(deltas)
    sums = [
        [
            exact_sums.sum_magnitudes(delta.float()),
            exact_sums.sum_magnitudes((unified * unification.agrees(delta, unified)).float()),
        ]
        for delta in deltas
    ]
    return piece.tensor, deltas.shape[1], np.array(sums)


class _Totals:
    """Adds up the pieces, which come tensor by tensor."""

    def __init__(self, n_models: int, scope: Literal["global", "tensor_mean"]) -> None:
        self._is_by_tensor = scope == "tensor_mean"
        self._totals = [[Fraction(0), Fraction(0)] for _ in range(n_models)]
        self._tensor = ""
        self._n_elements = 0
        self._sums: Sums = np.zeros((n_models, 2, 256), dtype=np.int64)

    def add(self, tensor: str, n_elements: int, sums: Sums) -> None:
        """Take the sums of one more piece."""
        if tensor != self._tensor:
            self._close()
        self._tensor = tensor
        self._n_elements += n_elements
        self._sums += sums

    def factors(self) -> tuple[float, ...]:
        """Return each model's factor."""
        self._close()
        return tuple(_ratio(*total) for total in self._totals)

    def _close(self) -> None:
        share = Fraction(1, self._n_elements) if self._is_by_tensor and self._n_elements else Fraction(1)
        for total, sums in zip(self._totals, self._sums, strict=True):
            for index in (0, 1):
                total[index] += share * exact_sums.to_fraction(sums[index])
        self._n_elements = 0
        self._sums[:] = 0


def _ratio(whole: Fraction, kept: Fraction) -> float:
    return float(whole / kept) if kept else 0.0
