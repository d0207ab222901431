"""Squared lengths, tensor by tensor, of the base model and of each task vector, in one pass and in float64."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.contract import Piece, PieceSource
from workers.numerics import task_vectors


@dataclass(frozen=True)
class Energy:
    """Squared lengths over some entries."""

    base: float
    deltas: Tensor  # [n] float64

    def __add__(self, other: "Energy") -> "Energy":
        """Return the squared lengths over the entries of both."""
        return Energy(self.base + other.base, self.deltas + other.deltas)


def measure_energies(source: PieceSource) -> Mapping[str, Energy]:
    """Return the energies of every tensor, by name; the source has a base model."""
    found = {name: nothing(source.n_models) for name, _, _ in source.tensors}
    for tensor, energy in source.map(_measure):
        found[tensor] += energy
    return found


def nothing(n_models: int) -> Energy:
    """Return the energies over no entry."""
    return Energy(0.0, torch.zeros(n_models, dtype=torch.float64))


def _measure(piece: Piece) -> tuple[str, Energy]:
    if piece.base is None:
        raise ValueError("task vectors are differences from a base model")
    deltas = task_vectors.subtract(piece.finetuned.double(), piece.base.double())  # [n, m]
    squares = torch.stack([delta.square().sum() for delta in deltas])
    return piece.tensor, Energy(float(piece.base.double().square().sum()), squares)
