"""Tells fast whether numbers are finite, from their bits: torch.isfinite costs as much as all of task arithmetic.

As integers, the bits of positive floats are ordered like the floats, with infinity and NaN on top; as unsigned integers
the bits of negative floats lie above them, ordered by magnitude, again with infinity and NaN on top.
"""

import numpy as np
import torch
from torch import Tensor

_SIGNED = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_UNSIGNED = {2: np.uint16, 4: np.uint32, 8: np.uint64}
# the bits of +infinity
_INFINITY = {
    torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F80_0000, torch.float64: 0x7FF0_0000_0000_0000,
}  # fmt: skip


def has_finite_bits(numbers: Tensor) -> bool:
    """Tell whether every number of a contiguous floating CPU tensor is finite; an empty one has only finite numbers."""
    item = numbers.element_size()
    bits = numbers.view(_SIGNED[item]).numpy()
    infinity = _INFINITY[numbers.dtype]
    negative_infinity = infinity | 1 << (8 * item - 1)
    return bool(bits.max(initial=0) < infinity and bits.view(_UNSIGNED[item]).max(initial=0) < negative_infinity)
