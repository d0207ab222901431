"""Sums of magnitudes without any rounding: whatever the order and the cut into pieces, the bits are the same.

A float32 number is a 24-bit integer times a power of two. The integers are summed exponent by exponent, which float64
does exactly for 2**29 numbers at a time and int64 for 2**39.
"""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from workers.numerics import fused

ExponentSums = NDArray[np.int64]  # [256]: of the numbers with each exponent, the sum of their integers

_FRACTION_BITS = 23
_SMALLEST_EXPONENT = -149


def sum_magnitudes(numbers: Tensor) -> ExponentSums:
    """Return Σ |x| over a float32 tensor of any shape; such sums may be added."""
    flat: NDArray[np.float32] = numbers.reshape(-1).numpy()
    if fused.is_ready():
        return fused.sum_magnitudes(np.ascontiguousarray(flat))
    bits = flat.view(np.int32)
    exponents = (bits >> _FRACTION_BITS) & 0xFF
    integers = bits & ((1 << _FRACTION_BITS) - 1)
    integers = np.where(exponents > 0, integers | (1 << _FRACTION_BITS), integers)
    return np.bincount(exponents, weights=integers, minlength=256).astype(np.int64)


def to_fraction(sums: ExponentSums) -> Fraction:
    """Return the number that a sum is, exactly."""
    total = sum(int(sums[exponent]) << max(exponent - 1, 0) for exponent in np.flatnonzero(sums).tolist())
    return total * Fraction(1, 2**-_SMALLEST_EXPONENT)
