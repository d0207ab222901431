"""Regression mean: the matrix that maps each model's inputs as nearly as possible to what that model maps them to.

Source: Jin et al. 2022, arXiv:2212.09849, equation 2 and section 3.3.
"""

import torch
from torch import Tensor


class Regression:
    """The W that minimizes Σ sᵢ tr((W − Wᵢ) Gᵢ (W − Wᵢ)ᵀ) + ρ ‖W − W̄‖²; models are added one by one.

    Solved from the mean W̄, so that equal models come back to the bit, and inputs that no model has seen leave the mean:
    W = W̄ + (Σ sᵢ (Wᵢ − W̄) Gᵢ) (Σ sᵢ Gᵢ + ρ)⁻¹. All in float64.
    """

    def __init__(self, mean: Tensor) -> None:
        """mean: W̄, [out, in] float64."""
        self._mean = mean
        self._moved = torch.zeros_like(mean)
        self._normal = mean.new_zeros(mean.shape[1], mean.shape[1])

    def add(self, weight: Tensor, gram: Tensor, share: float, *, non_diagonal_scale: float) -> None:
        """Add a model. weight: Wᵢ, [out, in]; gram: [in, in], symmetric, not negative; share: sᵢ ≥ 0.

        non_diagonal_scale: factor on what lies off the diagonal of the Gram matrix.
        """
        scaled = gram.double() * non_diagonal_scale
        scaled.diagonal().copy_(gram.diagonal())
        self._normal.add_(scaled, alpha=share)
        self._moved.add_((weight.double() - self._mean) @ scaled, alpha=share)

    def solve(self, ridge: float) -> Tensor:
        """Return W, [out, in] float64. ρ is `ridge` times the mean of the diagonal of Σ sᵢ Gᵢ."""
        level = self._normal.diagonal().mean().item()
        if level <= 0.0:  # no input but zeros
            return self._mean.clone()
        normal = self._normal.clone()
        normal.diagonal().add_(ridge * level)
        return self._mean + torch.cholesky_solve(self._moved.mT, torch.linalg.cholesky(normal)).mT
