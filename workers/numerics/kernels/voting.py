"""Elections: rows are voted on, and what agrees with the elected sign is merged."""

import numpy as np

from workers.numerics.kernels.adding import add, add_both, add_ones, scale, start_both
from workers.numerics.kernels.bits import NOTHING, ONE, SIGN, as_wide_bits, f32, f64, fma, i64, u32, u64
from workers.numerics.kernels.blocks import load_masked
from workers.numerics.kernels.compiling import compiled
from workers.numerics.programs import LARGEST, MEAN


@compiled
def sum_votes(given, program, begin, scratch, total):
    """Sum the votes of the block's masked rows, and keep those; return the largest magnitude's bits."""
    m, n, votes, largest = len(total), len(program.votes), program.votes, u32(0)
    if n == 1:
        total[:] = NOTHING  # else a pair starts the sum
    for model in range(n):
        row = scratch.rows[1 + model, :m]
        largest = max(largest, load_masked(given, program, model, begin, scratch.rows[0, :m], row))
        if program.turns[model] != f32(1.0):
            scale(row, program.turns[model])
        if model == 1:
            start_both(total, scratch.rows[model, :m], row, votes[0], votes[1])
        elif model % 2 == 1:
            add_both(total, scratch.rows[model, :m], row, votes[model - 1], votes[model])
        elif model + 1 == n:
            add(total, row, votes[model])
    return largest


@compiled
def reduce_agreeing(program, scratch, total):
    """Replace the votes' sum by the disjoint merge of the rows that `sum_votes` has kept."""
    m = len(total)
    counts, elected = scratch.rows[len(scratch.rows) - 2, :m], scratch.rows[len(scratch.rows) - 1, :m]
    _elect(total, program.nudge, elected)
    if program.reduction == LARGEST:
        total[:] = 0.0
        for model in range(len(program.weights)):
            _keep_agreeing(scratch.rows[1 + model, :m], elected)
            _take_larger(total, scratch.rows[1 + model, :m], program.weights[model])
        _turn(total, elected)
    elif program.weights_differ:
        _reduce_by_weights(program, scratch, elected, total)
    else:
        _sum_agreeing(program, scratch, elected, total, counts)
        if program.reduction == MEAN:
            _turn_over_counts(total, elected, counts, program.weights[0] if program.weights[0] != 0.0 else 1.0)
        else:
            _turn(total, elected)


@compiled
def _add_agreeing(total, counts, row, elected, weight):
    for j in range(len(row)):
        turned = f32(row[j] * elected[j])
        turned = turned if turned > f32(0.0) else f32(0.0)
        total[j] = fma(f64(turned), weight, total[j])
        counts[j] += f32(turned > f32(0.0))


def _adding_both_agreeing(*, starts):
    """Make the function that does so for two rows, one after the other; or that starts with them."""

    @compiled
    def add_both_agreeing(total, counts, one, other, elected, weight):
        for j in range(len(one)):
            turned, other_turned = f32(one[j] * elected[j]), f32(other[j] * elected[j])
            turned = turned if turned > f32(0.0) else f32(0.0)
            other_turned = other_turned if other_turned > f32(0.0) else f32(0.0)
            first = f64(turned) * weight if starts else fma(f64(turned), weight, total[j])
            total[j] = fma(f64(other_turned), weight, first)
            count = f32(f32(turned > f32(0.0)) + f32(other_turned > f32(0.0)))
            counts[j] = count if starts else f32(counts[j] + count)

    return add_both_agreeing


_add_both_agreeing, _start_both_agreeing = (_adding_both_agreeing(starts=starts) for starts in (False, True))


@compiled
def _sum_agreeing(program, scratch, elected, total, counts):
    m, n, weight = len(total), len(program.weights), program.weights[0]
    if n == 1:
        total[:] = 0.0
        counts[:] = f32(0.0)
        _add_agreeing(total, counts, scratch.rows[1, :m], elected, weight)
        return
    _start_both_agreeing(total, counts, scratch.rows[1, :m], scratch.rows[2, :m], elected, weight)
    for model in range(3, n, 2):
        _add_both_agreeing(total, counts, scratch.rows[model, :m], scratch.rows[model + 1, :m], elected, weight)
    if n % 2 == 1:
        _add_agreeing(total, counts, scratch.rows[n, :m], elected, weight)


@compiled
def _reduce_by_weights(program, scratch, elected, total):
    m, smallest = len(total), np.inf
    shares = scratch.wide[1, :m]
    total[:] = 0.0
    shares[:] = 0.0
    for model in range(len(program.weights)):
        row, weight = scratch.rows[1 + model, :m], program.weights[model]
        smallest = weight if 0.0 < weight < smallest else smallest
        _keep_agreeing(row, elected)
        add(total, row, weight)
        add_ones(shares, row, weight)
    if program.reduction == MEAN:
        _turn_over_shares(total, elected, shares, smallest)
    else:
        _turn(total, elected)


@compiled
def _elect(total, nudge, elected):
    """Write the sign of total + nudge, as 1.0 or -1.0: with a nudge it is not zero."""
    bits = elected.view(np.uint32)
    for j in range(len(total)):
        wide = as_wide_bits(total[j] + nudge)
        bits[j] = u32(u32(u32(wide >> u64(32)) & SIGN) | ONE)


@compiled
def count_balance(total):
    positive, negative = i64(0), i64(0)
    for j in range(len(total)):
        positive += i64(total[j] > 0.0)
        negative += i64(total[j] < 0.0)
    return positive - negative


@compiled
def _keep_agreeing(row, elected):
    """Write the magnitude of what has the elected sign, 0 elsewhere."""
    for j in range(len(row)):
        turned = f32(row[j] * elected[j])
        row[j] = turned if turned > f32(0.0) else f32(0.0)


@compiled
def _take_larger(total, row, weight):
    for j in range(len(row)):
        other = f64(row[j]) * weight
        total[j] = other if other > total[j] else total[j]


@compiled
def _turn(total, elected):
    for j in range(len(total)):
        total[j] = total[j] * f64(elected[j])


@compiled
def _turn_over_counts(total, elected, counts, weight):
    for j in range(len(total)):
        total[j] = total[j] * f64(elected[j]) / (f64(max(counts[j], f32(1.0))) * weight)


@compiled
def _turn_over_shares(total, elected, shares, smallest):
    for j in range(len(total)):
        total[j] = total[j] * f64(elected[j]) / max(shares[j], smallest)
