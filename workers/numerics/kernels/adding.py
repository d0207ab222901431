"""Sums: of magnitudes, without any rounding, and of rows, in float64."""

import numpy as np
from numba import types

from workers.numerics.kernels.bits import (
    MAGNITUDE,
    as_bits,
    as_double,
    as_wide_bits,
    f32,
    f64,
    fma,
    i64,
    to_float,
    u32,
    u64,
)
from workers.numerics.kernels.compiling import called, compiled
from workers.numerics.kernels.reading import largest_bits
from workers.numerics.programs import BLOCK

FINER = 26  # powers of two between the largest number of a block and the unit in which its magnitudes are summed


@compiled
def add_magnitudes(row, sums):
    """Add magnitudes as integers times powers of two, exactly.

    sums: [256], by exponent; see numerics/exact_sums.py.
    """
    for begin in range(0, len(row), BLOCK):
        some = row[begin : min(len(row), begin + BLOCK)]
        top = max(i64(largest_bits(some) >> u32(23)), i64(FINER + 1))
        if top == 255 or not _sum_in_units(some, top, sums):
            _sum_by_exponent(some, sums)


@compiled
def _sum_in_units(row, top, sums):
    """Add magnitudes in units of 2^-FINER of the largest one's last bit, if they are whole; tell whether they are.

    A number added to 1.5 · 2^52 units leaves its count of units in the lowest bits. top: the largest one's exponent.
    """
    origin = 1.5 * as_double(u64(u64(top + 1023 + 52 - 150 - FINER) << u64(52)))
    total, lost = u64(0), u64(0)
    for j in range(len(row)):
        magnitude = f64(abs(row[j]))
        placed = magnitude + origin
        total = u64(total + as_wide_bits(placed))
        lost = u64(lost | as_wide_bits(magnitude - (placed - origin)))
    if lost != u64(0):
        return False
    n_units = i64(total - u64(u64(len(row)) * as_wide_bits(origin)))
    sums[top - FINER] += n_units & i64((1 << FINER) - 1)
    sums[top] += n_units >> i64(FINER)
    return True


@compiled
def _sum_by_exponent(row, sums):
    bits = row.view(np.uint32)
    for j in range(len(row)):
        exponent = u32(u32(bits[j] >> u32(23)) & u32(0xFF))
        sums[i64(exponent)] += i64(u32(u32(bits[j] & u32(0x7FFFFF)) | u32(u32(exponent > u32(0)) << u32(23))))


@compiled
def add(total, row, weight):
    for j in range(len(row)):
        total[j] = fma(f64(row[j]), weight, total[j])


@compiled
def add_stored(total, stored, origin, weight):
    """Add a row's differences from the origin; return the bits of the largest magnitude."""
    largest = u32(0)
    for j in range(len(stored)):
        delta = f32(to_float(stored[j]) - origin[j])
        largest = max(largest, u32(as_bits(delta) & MAGNITUDE))
        total[j] = fma(f64(delta), weight, total[j])
    return largest


def _adding_both(*, starts):
    """Make the functions that do as those above for two rows, one after the other: the sum goes through memory once.

    Or that start a sum with two rows, as if they were added to NOTHING, which need not be written before.
    """

    @compiled
    def add_both(total, one, other, weight, other_weight):
        for j in range(len(one)):
            first = f64(one[j]) * weight if starts else fma(f64(one[j]), weight, total[j])
            total[j] = fma(f64(other[j]), other_weight, first)

    @compiled
    def add_both_stored(total, one, other, origin, weight, other_weight):
        largest = u32(0)
        for j in range(len(one)):
            delta, other_delta = f32(to_float(one[j]) - origin[j]), f32(to_float(other[j]) - origin[j])
            largest = max(largest, u32(as_bits(delta) & MAGNITUDE), u32(as_bits(other_delta) & MAGNITUDE))
            first = f64(delta) * weight if starts else fma(f64(delta), weight, total[j])
            total[j] = fma(f64(other_delta), other_weight, first)
        return largest

    return add_both, add_both_stored


add_both, add_both_stored = _adding_both(starts=False)
start_both, start_both_stored = _adding_both(starts=True)


@compiled
def add_ones(total, row, weight):
    for j in range(len(row)):
        total[j] = fma(f64(row[j] > f32(0.0)), weight, total[j])


@compiled
def scale(row, factor):
    for j in range(len(row)):
        row[j] = f32(row[j] * factor)


@called(types.void, types.float32[::1], types.int64[::1])
def sum_magnitudes(numbers, sums):
    """Add the sum of magnitudes to `sums`, [256], by exponent."""
    add_magnitudes(numbers, sums)
