"""Singular values of the task vectors of matrices, one matrix at a time, and what is read from them.

Source: Roy & Vetterli 2007, "The effective rank", equations 1-3 (effective rank); Rudelson & Vershynin 2007,
    arXiv:math/0503442 (stable rank).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from app.domain.parameters import MatrixChoice
from workers.contract import Piece, PieceSource
from workers.numerics import matrices, task_vectors


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one matrix of each model's task vector."""

    tensor: str
    shape: tuple[int, int]  # rows and columns
    values: Tensor  # [n, min(rows, columns)] float64, largest first


def measure_spectra(source: PieceSource, choice: MatrixChoice) -> Iterator[Spectrum]:
    """Yield the spectrum of every matrix, in the order of the tensors' names.

    Values come from the smaller Gram matrix: below 1e-8 of the largest one they are noise, as float32 inputs make them.
    """
    chosen = {name for name, shape, _ in source.tensors if matrices.is_matrix(name, shape, choice)}
    return source.map(_measure, chosen, granularity="tensor")


def effective_rank(values: Tensor) -> float:
    """Return exp(−Σ pᵢ ln pᵢ) with pᵢ = σᵢ / Σ σ: how many directions count, if all that count count alike; 0 for zero.

    values: [k], largest first.
    """
    total = float(values.sum())
    if total == 0.0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def stable_rank(values: Tensor) -> float:
    """Return ‖A‖²_F / ‖A‖²₂ = Σ σ² / σ₁², at most the rank; 0 for zero."""
    largest = float(values[0])
    return float((values / largest).square().sum()) if largest > 0.0 else 0.0


def rank_of_energy(values: Tensor, share: float) -> int:
    """Return how few directions hold a share of the energy Σ σ²; 0 for zero."""
    energy = values.square().cumsum(0)
    total = float(energy[-1])
    if total == 0.0:
        return 0
    n_below = int((energy < share * total * (1.0 - 1e-12)).sum())
    return min(n_below + 1, len(values))


def energy_curve(values: Tensor, n_points: int) -> Tensor:
    """Return the share of the energy that the leading i / (n_points − 1) of the directions hold, [n_points].

    values: [k], not all zero. Between two counts of directions the share is interpolated.
    """
    energy = torch.cat((values.new_zeros(1), values.square().cumsum(0)))  # [k + 1]
    at = torch.linspace(0.0, len(values), n_points, dtype=torch.float64)
    below = at.floor().long().clamp(max=len(values) - 1)
    part = at - below
    return (energy[below] * (1.0 - part) + energy[below + 1] * part) / energy[-1]


def _measure(piece: Piece) -> Spectrum:
    deltas = piece.finetuned if piece.base is None else task_vectors.subtract(piece.finetuned, piece.base)
    rows = piece.shape[0]
    values = torch.stack([_singular_values(delta.view(rows, -1).double()) for delta in deltas])
    return Spectrum(piece.tensor, (rows, deltas.shape[1] // rows), values)


def _singular_values(matrix: Tensor) -> Tensor:
    gram = matrix @ matrix.mT if matrix.shape[0] <= matrix.shape[1] else matrix.mT @ matrix
    return torch.linalg.eigvalsh(gram).clamp(min=0.0).sqrt().flip(0)  # type: ignore[no-any-return]  # torch's own
