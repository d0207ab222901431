"""Scores: importance and competition, in the steps of numerics/importance.py and numerics/competition.py."""

import numpy as np
from numba import types

from workers.numerics.kernels.bits import (
    MAGNITUDE,
    NOTHING,
    as_double,
    as_float,
    as_wide_bits,
    f32,
    f64,
    fma,
    i32,
    i64,
    u32,
    u64,
)
from workers.numerics.kernels.blocks import JUDGES, by_block
from workers.numerics.kernels.compiling import FLOATS, INPUT, SCRATCH, WIDE_ROWS, called, compiled
from workers.numerics.kernels.reading import load
from workers.numerics.programs import (
    BLOCK,
    EXP_SERIES,
    LEAST_TOTAL,
    LN_2_HIGH,
    LN_2_LOW,
    LOG2_E,
    ROUNDS_TO_INTEGER,
    SMALLEST_POWER,
    SOME,
    TANH_ABOVE,
    TANH_BELOW,
)

LARGEST_FLOAT = float(np.finfo(np.float32).max)


@compiled
def _exp(x):
    """Return e to the x, for x <= 0."""
    shifted = max(x, SMALLEST_POWER) * LOG2_E + ROUNDS_TO_INTEGER
    k = shifted - ROUNDS_TO_INTEGER
    rest = (max(x, SMALLEST_POWER) - k * LN_2_HIGH) - k * LN_2_LOW
    power = EXP_SERIES[0]
    power = power * rest + EXP_SERIES[1]
    power = power * rest + EXP_SERIES[2]
    power = power * rest + EXP_SERIES[3]
    power = power * rest + EXP_SERIES[4]
    power = power * rest + EXP_SERIES[5]
    power = power * rest + EXP_SERIES[6]
    power = power * rest + EXP_SERIES[7]
    power = power * rest + EXP_SERIES[8]
    power = power * rest + EXP_SERIES[9]
    power = power * rest + EXP_SERIES[10]
    power = power * rest + EXP_SERIES[11]
    power = power * rest + EXP_SERIES[12]
    return power * as_double(u64(as_wide_bits(shifted) + u64(1023)) << u64(52))


@compiled
def _raise_to(row, highest, powers):
    for j in range(len(row)):
        powers[j] = _exp(f64(row[j]) - highest)


@compiled
def _sum_by_halving(tree):
    m, half = len(tree), 1
    while 2 * half < m:
        half = 2 * half
    while half > 0:
        for j in range(min(half, m - half)):
            tree[j] += tree[half + j]
        m, half = half, half // 2
    return tree[0]


@compiled
def _highest(row):
    """Return the largest number, by bits that are turned to be ordered as the numbers are."""
    bits, highest = row.view(np.int32), i32(-0x8000_0000)
    for j in range(len(row)):
        highest = max(highest, i32(bits[j] ^ i32(i32(bits[j] >> i32(31)) & i32(MAGNITUDE))))
    return as_float(u32(highest ^ i32(i32(highest >> i32(31)) & i32(MAGNITUDE))))


@compiled
def _diverge(theirs, ours, trees):
    """Return how far one row's softmax is from another's: the divergence of numerics/importance.py."""
    highest, our_highest = f64(_highest(theirs)), f64(_highest(ours))
    powers, our_powers, moments = trees
    _raise_to(theirs, highest, powers)
    _raise_to(ours, our_highest, our_powers)
    for j in range(len(theirs)):
        moments[j] = powers[j] * ((f64(theirs[j]) - highest) - (f64(ours[j]) - our_highest))
    total, our_total = _sum_by_halving(powers), _sum_by_halving(our_powers)
    return max(0.0, _sum_by_halving(moments) / total - (np.log(total) - np.log(our_total)))


@compiled
def weigh_run(theirs, ours, divergences, width, index, out):
    """Write the importance of changes; index: of the first one within its tensor."""
    n, begin = len(out), 0
    while begin < n:
        row = (index + begin) // width
        behind = min(n, (row + 1) * width - index)
        _weigh_row(theirs[begin:behind], ours[begin:behind], divergences[row], out[begin:behind])
        begin = behind


@compiled
def _weigh_row(theirs, ours, divergence, out):
    for j in range(len(out)):
        weighed = abs(f64(theirs[j]) - f64(ours[j])) * divergence
        out[j] = f32(weighed if weighed < LARGEST_FLOAT else LARGEST_FLOAT)


@compiled
def _tanh_near_0(x):
    square = x * x
    above = ((TANH_ABOVE[0] * square + TANH_ABOVE[1]) * square + TANH_ABOVE[2]) * square + TANH_ABOVE[3]
    below = ((TANH_BELOW[0] * square + TANH_BELOW[1]) * square + TANH_BELOW[2]) * square + TANH_BELOW[3]
    return x * above / (below * square + TANH_BELOW[4])


@compiled
def _tanh(x):
    power = _exp(-2.0 * abs(x))
    return _tanh_near_0(x) if abs(x) <= 1.0 else np.copysign((1.0 - power) / (1.0 + power), x)


@compiled
def _rescale_signed(row, low, high, values):
    """Write where magnitudes lie between bounds, 0 to 1, with the signs of the entries; 0 if the bounds are one."""
    span = high - low
    for j in range(len(row)):
        sign = f64(row[j] > f32(0.0)) - f64(row[j] < f32(0.0))
        values[j] = sign * ((min(max(f64(abs(row[j])), low), high) - low) / span) if span > 0.0 else 0.0


@compiled
def _add_agreement(one, other, total, other_total):
    for j in range(len(one)):
        agreement = _tanh_near_0(one[j] * other[j])
        total[j] += agreement
        other_total[j] += agreement


@compiled
def _add_own_agreement(one, total):
    for j in range(len(one)):
        total[j] += _tanh_near_0(one[j] * one[j])


@compiled
def _agree_with_sum(row, sums, total):
    for j in range(len(row)):
        total[j] = _tanh(f64(row[j]) * sums[j])


@compiled
def _weigh_agreement(strengths, total, n, divisor, out):
    for j in range(len(out)):
        out[j] = f32(_exp(n * (strengths[j] * strengths[j] - 1.0)) * (total[j] / divisor))


@called(types.void, WIDE_ROWS, types.float64[:, ::1], types.boolean, types.float64[:, ::1], WIDE_ROWS)
def compete(deltas, clips, of_rescaled, memory, out):
    """Write the score of every entry, [n, m]; see numerics/competition.py. clips: [n, 2]; memory: [2n + 1, SOME]."""
    n, m = deltas.shape
    values, totals, sums = memory[:n], memory[n : 2 * n], memory[2 * n]
    for begin in range(0, m, SOME):
        behind = min(m, begin + SOME)
        size = behind - begin
        totals[:] = 0.0
        sums[:] = 0.0
        for model in range(n):
            row = deltas[model, begin:behind]
            _rescale_signed(row, clips[model, 0], clips[model, 1], values[model, :size])
            for j in range(size):
                sums[j] += f64(row[j])
        for first in range(n):
            if not of_rescaled:
                _agree_with_sum(deltas[first, begin:behind], sums[:size], totals[first, :size])
                continue
            _add_own_agreement(values[first, :size], totals[first, :size])
            for second in range(first + 1, n):
                _add_agreement(values[first, :size], values[second, :size], totals[first, :size], totals[second, :size])
        for model in range(n):
            divisor = f64(n) if of_rescaled else 1.0
            _weigh_agreement(values[model, :size], totals[model, :size], f64(n), divisor, out[model, begin:behind])


@compiled
def _add_shares(row, scores, clips, bounds, weight, totals):
    """Add what one model's scores make of its entries to a sum, and these shares of the merge to another."""
    merged, total = totals
    low, high, span = bounds[0], bounds[1], bounds[1] - bounds[0]
    smallest, largest = f32(clips[0]), f32(clips[1])
    for j in range(len(row)):
        share = (min(max(f64(scores[j]), low), high) - low) / span if span > 0.0 else 0.0
        sign = f32(row[j] > f32(0.0)) - f32(row[j] < f32(0.0))
        clipped = f32(sign * min(max(abs(row[j]), smallest), largest))
        total[j] += share
        merged[j] = fma(share * f64(clipped), weight, merged[j])


@called(types.void, WIDE_ROWS, WIDE_ROWS, types.float64[:, ::1], types.float64[:, ::1], FLOATS, FLOATS, FLOATS)
def share_out(deltas, scores, clips, bounds, weights, total, out):
    """Write the mean of clipped entries by score, [m]; see numerics/competition.py. clips, bounds: [n, 2].

    total: [BLOCK], memory.
    """
    n, m = deltas.shape
    for begin in range(0, m, BLOCK):
        behind = min(m, begin + BLOCK)
        some, merged = total[: behind - begin], out[begin:behind]
        some[:] = NOTHING
        merged[:] = NOTHING
        for model in range(n):
            row, own = deltas[model, begin:behind], scores[model, begin:behind]
            _add_shares(row, own, clips[model], bounds[model], weights[model], (merged, some))
        for j in range(len(some)):
            merged[j] = merged[j] / max(some[j], LEAST_TOTAL)


@by_block
def _diverge_by_block(given, first, begin, behind, scratch, state):
    out, width = state[0], given.width
    base, theirs = scratch.rows[0, : behind - begin], scratch.rows[1, : behind - begin]
    load(given, 1, begin, theirs)
    for at in range(0, behind - begin, width):
        row = (first + begin + at) // width
        trees = scratch.wide[0, :width], scratch.wide[1, :width], scratch.wide[2, :width]
        out[row] = _diverge(theirs[at : at + width], base[at : at + width], trees)
    return i64(0)


@called(types.int64, INPUT, SCRATCH, FLOATS)
def diverge(given, scratch, out):
    """Write the divergence of every row, [rows], that is given; see numerics/importance.py. Rows are not cut."""
    return _diverge_by_block(given, JUDGES, scratch, (out,))
