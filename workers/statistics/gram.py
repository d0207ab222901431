"""Inner products of all pairs of task vectors, in one pass: norms, cosines and what is solved from them."""

import torch
from torch import Tensor

from workers.contract import Piece, PieceSource
from workers.numerics import precision, task_vectors


def gram_matrix(source: PieceSource) -> Tensor:
    """Return the inner products τᵢ · τⱼ over the whole merge set, [n, n] float64; without a base model τ is the model.

    The pieces are added in the order of their positions, so the result does not depend on the number of threads.
    """
    total = torch.zeros(source.n_models, source.n_models, dtype=torch.float64)
    for part in source.map(_products):
        total += part
    return total


def cosines(gram: Tensor) -> Tensor:
    """Return the cosines of a Gram matrix, [n, n] float64 in [-1, 1]; NaN where a vector is zero."""
    norms = gram.diagonal().sqrt()
    found = (gram / torch.outer(norms, norms)).clamp(-1.0, 1.0)
    found.diagonal().copy_(torch.where(norms > 0, 1.0, torch.nan))
    return found


def _products(piece: Piece) -> Tensor:
    deltas = piece.finetuned if piece.base is None else task_vectors.subtract(piece.finetuned, piece.base)
    return precision.inner_products(deltas.double())


def gram_matrices(source: PieceSource) -> dict[str, Tensor]:
    """Return the Gram matrix of each tensor by name, [n, n] float64 each; an empty tensor's is zero."""
    matrices = {
        name: torch.zeros(source.n_models, source.n_models, dtype=torch.float64) for name, _, _ in source.tensors
    }
    for name, part in source.map(lambda piece: (piece.tensor, _products(piece))):
        matrices[name] += part
    return matrices
