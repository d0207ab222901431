"""Paths between two tensors: the straight line, and the arc.

Source: Shoemake 1985, "Animating rotation with quaternion curves" (slerp).
"""

from math import acos, fsum, sin, sqrt

import torch
from torch import Tensor

from workers.numerics import precision

NEARLY_PARALLEL = 0.9995  # |cosine| from which the arc is taken as its chord: sin(angle) gets too small to divide by
BLOCK_ELEMENTS = 1 << 14  # dot products are summed block by block, whatever the number of threads


def interpolate_linearly(first: Tensor, second: Tensor, t: float) -> Tensor:
    """Return (1 − t)·first + t·second, float32; exact at both ends and where the tensors are equal."""
    return _combine(first, second, 1.0 - t, t)


def interpolate_spherically(first: Tensor, second: Tensor, t: float) -> Tensor:
    """Return the point at t of the arc from first to second, float32: the angle is that of the flattened tensors.

    [sin((1 − t)Ω)·first + sin(tΩ)·second] / sin Ω with cos Ω = ⟨first, second⟩ / (‖first‖·‖second‖). The tensors are
    not normalized, so equal norms are kept. Where a norm is 0 or |cos Ω| > 0.9995 there is no arc to speak of: the
    straight line is taken.
    """
    norms = sqrt(_inner(first, first)) * sqrt(_inner(second, second))
    cosine = _inner(first, second) / norms if norms > 0 else 1.0
    if abs(cosine) > NEARLY_PARALLEL:
        return interpolate_linearly(first, second, t)
    angle = acos(cosine)
    return _combine(first, second, sin((1.0 - t) * angle) / sin(angle), sin(t * angle) / sin(angle))


def _combine(first: Tensor, second: Tensor, share: float, other_share: float) -> Tensor:
    return precision.round_to_float32(precision.weighted_sum((first, second), (share, other_share)))


def _inner(first: Tensor, second: Tensor) -> float:
    pairs = zip(
        torch.split(first.flatten(), BLOCK_ELEMENTS), torch.split(second.flatten(), BLOCK_ELEMENTS), strict=True
    )
    return fsum(float((one.double() * other.double()).sum()) for one, other in pairs)
