"""How much each task vector may say at each entry: what is large in it, and agrees with the others, scores high.

Scores are signed float32 numbers in [-1, 1]. They are compared as such, rounded from float64.

Source: Du et al. 2024, arXiv:2410.02396; the authors' code in its two variants.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.numerics import elementary, fused, precision
from workers.numerics.programs import LEAST_TOTAL

Variant = Literal["vision", "script"]

_ONE = 0x3F800000  # the bits of 1.0, float32
_SIZE = 0x7FFFFFFF  # all but the sign


@dataclass(frozen=True)
class Bounds:
    """Two float32 numbers between which values are held, and from which to which they are rescaled."""

    low: float
    high: float


def clip(delta: Tensor, bounds: Bounds) -> Tensor:
    """Return a task vector with its magnitudes held within bounds; a zero stays one. delta: [m] float32."""
    return delta.sign() * delta.abs().clamp(bounds.low, bounds.high)


def rescale(values: Tensor, bounds: Bounds) -> Tensor:
    """Return where values lie between bounds, in [0, 1]; 0 everywhere if the bounds are one.

    values: [m]; result: [m] float64.
    """
    span = bounds.high - bounds.low
    if span <= 0:
        return torch.zeros_like(values, dtype=torch.float64)
    return values.double().clamp(bounds.low, bounds.high).sub_(bounds.low).div_(span)


def score(deltas: Tensor, clips: Sequence[Bounds], variant: Variant) -> Tensor:
    """Return exp(n · (N² - 1)) · (agreement with all task vectors), N being the magnitudes rescaled from 0 to 1.

    deltas: [n, m] float32; clips: of their magnitudes; result: [n, m] float32. The authors' exp(n · N²) and sum over
    models differ by a constant factor, which does not matter to ranks and rescaling, and may overflow.
    """
    if deltas.numel() and fused.takes(deltas):
        return fused.compete(deltas, [(one.low, one.high) for one in clips], of_rescaled=variant == "vision")
    strengths = torch.stack([rescale(delta.abs(), bounds) for delta, bounds in zip(deltas, clips, strict=True)])
    importance = elementary.exp(len(deltas) * (strengths * strengths - 1.0))
    if variant == "vision":
        return (importance * _compare_rescaled(deltas.sign() * strengths)).float()
    return (importance * elementary.tanh(deltas * precision.weighted_sum(deltas, [1.0] * len(deltas)))).float()


def share_out(
    deltas: Tensor, scores: Tensor, clips: Sequence[Bounds], bounds: Sequence[Bounds], weights: Sequence[float]
) -> Tensor:
    """Return Σ wᵢ Sᵢ ⊙ τ̂ᵢ / Σ Sᵢ, 0 where all Sᵢ are: τ̂ᵢ clipped, Sᵢ the scores rescaled from 0 to 1.

    deltas, scores: [n, m] float32; clips, bounds: of their magnitudes and of the scores; result: [m] float64.
    """
    if deltas.numel() and fused.takes(deltas):
        within, between = ([(one.low, one.high) for one in some] for some in (clips, bounds))
        return fused.share_out(deltas, scores, within, between, weights)
    shares = [rescale(*pair) for pair in zip(scores, bounds, strict=True)]  # n of [m]
    clipped = (clip(*pair) for pair in zip(deltas, clips, strict=True))
    total = precision.weighted_sum(shares, [1.0] * len(shares)).clamp_min_(LEAST_TOTAL)
    parts = (share * vector for share, vector in zip(shares, clipped, strict=True))
    return precision.weighted_sum(parts, weights) / total


def to_magnitudes(scores: Tensor) -> Tensor:
    """Return non-negative finite float32 numbers in the order of the scores, one for one, to be ranked by."""
    bits: NDArray[np.int32] = scores.contiguous().numpy().view(np.int32)
    is_negative = bits >> 31  # all bits of it
    size = bits & np.int32(_SIZE)
    np.bitwise_xor(size, is_negative, out=size)
    np.subtract(size, is_negative, out=size)
    return torch.from_numpy(np.add(size, np.int32(_ONE), out=size).view(np.float32))


def to_score(magnitude: float) -> float:
    """Return the score that `to_magnitudes` turned into a number."""
    bits = int(np.float32(magnitude).view(np.int32)) - _ONE
    size = float(np.int32(abs(bits)).view(np.float32))
    return -size if bits < 0 else size


def _compare_rescaled(values: Tensor) -> Tensor:
    # [n, m]: Σⱼ tanh(vᵢ vⱼ) / n; each sum runs over j in order
    totals = torch.zeros_like(values)
    for first in range(len(values)):
        for second in range(first, len(values)):
            agreement = elementary.tanh_near_0(values[first] * values[second])
            totals[first] += agreement
            if second != first:
                totals[second] += agreement
    return totals / len(values)
