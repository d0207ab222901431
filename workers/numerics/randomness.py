"""Random numbers by position: entry i of a tensor always draws the same number, however the tensor is cut.

Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (SplitMix64), used as a counter.
"""

import torch
from torch import Tensor

SMALLEST_PROBABILITY = 1e-6  # of keeping an entry: its inverse is a factor

_STEP = 0x9E3779B97F4A7C15 - (1 << 64)  # as signed 64-bit numbers: torch multiplies modulo 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def draw_uniform(key: int, *, start: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the draws of positions start … start + n − 1, uniform in [0, 1).

    key: any 64-bit number; result: [n] float64 with 53 random bits.
    """
    state = torch.arange(start + 1, start + n + 1, dtype=torch.int64, device=device)
    state = state.mul_(_STEP).add_(_to_signed(key))
    state = (state ^ _shift_right(state, 30)).mul_(_MIX_1)
    state = (state ^ _shift_right(state, 27)).mul_(_MIX_2)
    state = state ^ _shift_right(state, 31)
    return _shift_right(state, 11).double().mul_(2.0**-53)


def keep_probabilities(width: int, density: float, spread: float, device: torch.device | str = "cpu") -> Tensor:
    """Return with what probability an entry is kept, by the rank of its magnitude within a row, the smallest first.

    result: [width] float64, from density - spread to density + spread, clamped to [SMALLEST_PROBABILITY, 1].
    """
    if width == 1 or spread == 0.0:
        return torch.full((width,), density, dtype=torch.float64, device=device)
    steps = torch.arange(width, dtype=torch.float64, device=device) / max(1, width - 1)
    return (density - spread + 2.0 * spread * steps).clamp_(SMALLEST_PROBABILITY, 1.0)


def _shift_right(state: Tensor, n_bits: int) -> Tensor:
    return (state >> n_bits) & ((1 << (64 - n_bits)) - 1)  # torch shifts in the sign bit


def _to_signed(key: int) -> int:
    key &= (1 << 64) - 1
    return key - (1 << 64) if key >= 1 << 63 else key
