"""Paths between two tensors: the straight line, and the arc.

Source: Shoemake 1985, "Animating rotation with quaternion curves" (slerp).
"""

from math import acos, fsum, sin, sqrt

import torch
from torch import Tensor

from workers.numerics import precision

NEARLY_PARALLEL = 0.9995  # |cosine| from which the arc is taken as its chord: sin(angle) gets too small to divide by
BLOCK_ELEMENTS = 1 << 12  # products are summed block by block, whatever the number of threads
RUN_ELEMENTS = 1 << 18  # whole blocks


def interpolate_linearly(first: Tensor, second: Tensor, t: float) -> Tensor:
    """Return (1 − t)·first + t·second, float32; exact at both ends and where the tensors are equal."""
    return _combine(first, second, 1.0 - t, t)


def interpolate_spherically(first: Tensor, second: Tensor, t: float) -> Tensor:
    """Return the point at t of the arc from first to second, float32: the angle is that of the flattened tensors.

    [sin((1 − t)Ω)·first + sin(tΩ)·second] / sin Ω with cos Ω = ⟨first, second⟩ / (‖first‖·‖second‖). The tensors are
    not normalized, so equal norms are kept. Where a norm is 0 or |cos Ω| > 0.9995 there is no arc to speak of: the
    straight line is taken.
    """
    squared, product, other_squared = _inner_products(first.reshape(-1), second.reshape(-1))
    norms = sqrt(squared) * sqrt(other_squared)
    cosine = product / norms if norms > 0 else 1.0
    if abs(cosine) > NEARLY_PARALLEL:
        return interpolate_linearly(first, second, t)
    angle = acos(cosine)
    return _combine(first, second, sin((1.0 - t) * angle) / sin(angle), sin(t * angle) / sin(angle))


def _combine(first: Tensor, second: Tensor, share: float, other_share: float) -> Tensor:
    return precision.round_to_float32(precision.weighted_sum((first, second), (share, other_share)))


def _inner_products(first: Tensor, second: Tensor) -> tuple[float, float, float]:
    """Return those of the first with itself, of both, and of the second with itself: blocks, then exactly summed."""
    runs = zip(torch.split(first, RUN_ELEMENTS), torch.split(second, RUN_ELEMENTS), strict=True)
    found = torch.cat([part for one, other in runs for part in _multiply_blocks(torch.stack((one, other)))])
    sums = [fsum(found[:, row, column].tolist()) for row, column in ((0, 0), (0, 1), (1, 1))]
    return sums[0], sums[1], sums[2]


def _multiply_blocks(pair: Tensor) -> tuple[Tensor, Tensor]:
    # [2, m] -> inner products of the whole blocks, [n_blocks, 2, 2], and of what lies behind them, [1, 2, 2]
    n_blocks = pair.shape[1] // BLOCK_ELEMENTS
    whole = n_blocks * BLOCK_ELEMENTS
    blocks, rest = pair[:, :whole].reshape(2, n_blocks, BLOCK_ELEMENTS), pair[:, whole:].unsqueeze(1)
    return precision.inner_products(blocks), precision.inner_products(rest)
