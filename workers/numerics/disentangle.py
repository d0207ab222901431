"""The redundant vector that task vectors share: subtract it, and they stand nearer to orthogonal.

Gradient descent from 0 stays in the span of the task vectors, δ = Σ aₜ τₜ, so it is done on the n coefficients: all
that is needed of the task vectors is their Gram matrix. The objective has edges where a cosine is 0, and descent jumps
to and fro over them: the last bit of a sum can decide a step. So the vectors are first put into an order of their own.

Source: Xiong et al. 2024, arXiv:2411.18729 (AWD), equations 9 to 11, as a third party quotes them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

REFERENCE_NORM = 2.0  # of task vectors of the size that the published learning rate fits
SMALLEST_NORM = 1e-6  # a vector shorter than this has no direction
DEPENDENT = 1e-12  # of the largest eigenvalue: below, a combination of the vectors is zero but for rounding


@dataclass(frozen=True)
class Descent:
    """How the redundant vector is looked for: plain gradient descent on mean |cosine| + norm_penalty · ‖δ‖."""

    norm_penalty: float
    learning_rate: float
    steps: int
    is_normalized: bool  # descend at the reference norm, so that the scale of the task vectors does not matter


def solve_redundancy(gram: Tensor, descent: Descent) -> Tensor:
    """Return the coefficients a of the redundant vector δ = Σ aₜ τₜ: of all iterates, those of the lowest objective.

    gram: [*batch, n, n] float64, inner products of task vectors; result: [*batch, n]. One vector, or none with a
    direction: zeros.
    """
    order = _order(gram)  # [*batch, n]
    ordered = gram.gather(-2, order.unsqueeze(-1).expand(gram.shape)).gather(-1, order.unsqueeze(-2).expand(gram.shape))
    scaled = _normalize(ordered) if descent.is_normalized else ordered
    span = _span(scaled)
    coefficients = torch.zeros_like(scaled[..., 0])
    best, lowest = coefficients, torch.full_like(scaled[..., 0, 0], torch.inf)
    for step in range(descent.steps + 1):
        objective, gradient = _descend(scaled, coefficients, descent.norm_penalty)
        is_lower = objective < lowest
        lowest = torch.where(is_lower, objective, lowest)
        best = torch.where(is_lower.unsqueeze(-1), coefficients, best)
        if step < descent.steps:
            coefficients = coefficients - descent.learning_rate * (gradient.unsqueeze(-2) @ span).squeeze(-2)
    return torch.zeros_like(best).scatter(-1, order, best)


def subtract_redundancy(gram: Tensor, coefficients: Tensor) -> Tensor:
    """Return the Gram matrix of the vectors τᵢ − Σ aₜ τₜ. gram: [*batch, n, n]; coefficients: [*batch, n]."""
    rest = _rest(coefficients)
    return rest @ gram @ rest.mT


def mean_absolute_cosine(gram: Tensor) -> Tensor:
    """Return the mean |cosine| over the pairs of vectors of a Gram matrix, [*batch]; 0 for one vector."""
    n = gram.shape[-1]
    cosines, _ = _cosines(gram)
    return cosines.abs().sum((-1, -2)) / max(1, n * (n - 1))


def _order(gram: Tensor) -> Tensor:
    """Return an order of the vectors that does not depend on the one they come in: by norm, then by inner products."""
    sums = gram.sort(-1).values.sum(-1)
    by_sum = sums.argsort(stable=True, dim=-1)
    norms = gram.diagonal(dim1=-2, dim2=-1).gather(-1, by_sum)
    return by_sum.gather(-1, norms.argsort(stable=True, dim=-1))


def _span(gram: Tensor) -> Tensor:
    """Return the projection of coefficients onto those that give a vector: dependent vectors have others beside."""
    values, vectors = torch.linalg.eigh(gram)
    kept = vectors * (values > DEPENDENT * values[..., -1:]).unsqueeze(-2)
    projection: Tensor = kept @ kept.mT
    return projection


def _normalize(gram: Tensor) -> Tensor:
    norms = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
    scale = norms.mean(-1, keepdim=True).unsqueeze(-1) / REFERENCE_NORM
    return torch.where(scale > 0, gram / torch.where(scale > 0, scale * scale, 1.0), gram)


def _descend(gram: Tensor, coefficients: Tensor, norm_penalty: float) -> tuple[Tensor, Tensor]:
    """Return the objective, [*batch], and its gradient with respect to the redundant vector, as coefficients."""
    n = gram.shape[-1]
    pairs = max(1, n * (n - 1))
    rest = _rest(coefficients)  # [*batch, n, n]; row i: τᵢ − δ
    cosines, inverse_norms = _cosines(rest @ gram @ rest.mT)
    signs = cosines.sign()
    pull = (signs * inverse_norms.unsqueeze(-2)).sum(-1) * inverse_norms
    pull = pull - (signs * cosines).sum(-1) * inverse_norms.square()  # [*batch, n]
    gradient = -2.0 / pairs * (pull.unsqueeze(-1) * rest).sum(-2)
    squared = (coefficients.unsqueeze(-2) @ gram @ coefficients.unsqueeze(-1))[..., 0, 0]
    longest = (coefficients.abs() * gram.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()).sum(-1)
    norm = torch.where(squared > DEPENDENT * longest.square(), squared, 0.0).sqrt()
    toward_zero = torch.where(norm > 0, norm_penalty / torch.where(norm > 0, norm, 1.0), 0.0)
    objective = cosines.abs().sum((-1, -2)) / pairs + norm_penalty * norm
    return objective, gradient + toward_zero.unsqueeze(-1) * coefficients


def _rest(coefficients: Tensor) -> Tensor:
    n = coefficients.shape[-1]
    return torch.eye(n, dtype=coefficients.dtype, device=coefficients.device) - coefficients.unsqueeze(-2)


def _cosines(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines between different vectors, 0 elsewhere, and 1 / norm, 0 for a vector without a direction."""
    norms = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
    inverse = torch.where(norms >= SMALLEST_NORM, 1.0 / norms, 0.0)
    cosines = gram * inverse.unsqueeze(-1) * inverse.unsqueeze(-2)
    return cosines - torch.diag_embed(cosines.diagonal(dim1=-2, dim2=-1)), inverse
