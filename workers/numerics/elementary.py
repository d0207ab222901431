"""Functions that torch has, too, but worked out in steps of known rounding: no processor's library shows in the bits.

The kernels take the same steps (numerics/kernels/scoring.py).
"""

import torch
from torch import Tensor

from workers.numerics.programs import (
    EXP_SERIES,
    LN_2_HIGH,
    LN_2_LOW,
    LOG2_E,
    ROUNDS_TO_INTEGER,
    SMALLEST_POWER,
    TANH_ABOVE,
    TANH_BELOW,
)


def exp(x: Tensor) -> Tensor:
    """Return e to the x, for x <= 0; what is smaller than SMALLEST_POWER counts as this. x: float64, any shape."""
    x = x.clamp_min(SMALLEST_POWER)
    shifted = x * LOG2_E + ROUNDS_TO_INTEGER
    k = shifted - ROUNDS_TO_INTEGER
    rest = (x - k * LN_2_HIGH) - k * LN_2_LOW
    power = torch.full_like(x, EXP_SERIES[0])
    for coefficient in EXP_SERIES[1:]:
        power = power * rest + coefficient
    return power * ((shifted.view(torch.int64) + 1023) << 52).view(torch.float64)


def tanh(x: Tensor) -> Tensor:
    """Return the hyperbolic tangent, to 1e-14 of its size. x: float64, any shape."""
    power = exp(-2.0 * x.abs())
    far = torch.copysign((1.0 - power) / (1.0 + power), x)
    return torch.where(x.abs() <= 1.0, tanh_near_0(x), far)


def tanh_near_0(x: Tensor) -> Tensor:
    """Return `tanh`, of numbers from -1 to 1."""
    square = x * x
    above, below = torch.full_like(x, TANH_ABOVE[0]), torch.full_like(x, TANH_BELOW[0])
    for coefficient in TANH_ABOVE[1:]:
        above = above * square + coefficient
    for coefficient in TANH_BELOW[1:]:
        below = below * square + coefficient
    return x * above / below
