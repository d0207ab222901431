"""From the rows of a block to one: what a program makes of them, and how that joins the base model."""

import numpy as np

from workers.fusion import BFLOAT16, FLOAT16
from workers.numerics.kernels.adding import add, add_both, add_both_stored, add_stored
from workers.numerics.kernels.bits import MAGNITUDE, NOTHING, SIGN, f32, f64, fma, i64, u32
from workers.numerics.kernels.blocks import load_masked
from workers.numerics.kernels.compiling import compiled, inlined
from workers.numerics.kernels.pulling import pull_rows
from workers.numerics.kernels.reading import halves_of, load, load_delta, words_of
from workers.numerics.kernels.scoring import weigh_run
from workers.numerics.kernels.voting import reduce_agreeing, sum_votes
from workers.numerics.programs import FURTHEST, IMPORTANT, MEAN_OF_CHANGED, NEAR, PULLED, SUM_OF_ALL


@compiled
def _sum(given, program, begin, scratch, total):
    """Sum the block's masked rows; return the largest magnitude's bits."""
    m, n, largest, model = len(total), len(program.weights), u32(0), 0
    is_whole = len(program.marks) == 0 and len(given.keys) == 0
    base, row, other, origin = scratch.rows[0, :m], scratch.rows[1, :m], scratch.rows[2, :m], scratch.rows[3, :m]
    total[:] = NOTHING
    if program.of_deltas:
        origin = base
    else:
        origin[:] = f32(0.0)
    weights = program.weights
    while model < n:
        number = model + i64(given.has_base)
        kind = given.kinds[number]
        is_stored = is_whole and kind != FLOAT16
        if is_stored and model + 1 < n and given.kinds[number + 1] == kind:
            seen = _add_rows(given, number, begin, origin, total, weights[model], weights[model + 1])
            model += 2
        elif is_stored:
            seen = _add_row(given, number, begin, origin, total, weights[model])
            model += 1
        elif model + 1 < n:
            seen = load_masked(given, program, model, begin, base, row)
            seen = max(seen, load_masked(given, program, model + 1, begin, base, other))
            add_both(total, row, other, weights[model], weights[model + 1])
            model += 2
        else:
            seen = load_masked(given, program, model, begin, base, row)
            add(total, row, weights[model])
            model += 1
        largest = max(largest, seen)
    return largest


@compiled
def _add_row(given, number, begin, origin, total, weight):
    m = len(total)
    if given.kinds[number] == BFLOAT16:
        return add_stored(total, halves_of(given, number, begin, m), origin, weight)
    return add_stored(total, words_of(given, number, begin, m), origin, weight)


@compiled
def _add_rows(given, number, begin, origin, total, weight, next_weight):
    m, other = len(total), number + 1
    if given.kinds[number] == BFLOAT16:
        one, two = halves_of(given, number, begin, m), halves_of(given, other, begin, m)
        return add_both_stored(total, one, two, origin, weight, next_weight)
    first, second = words_of(given, number, begin, m), words_of(given, other, begin, m)
    return add_both_stored(total, first, second, origin, weight, next_weight)


@compiled
def _sum_changed(given, program, begin, scratch, total):
    """Average the block's masked rows over those that are not zero; return the largest magnitude's bits."""
    m, largest = len(total), u32(0)
    base, row, counts, boosts = scratch.rows[0, :m], scratch.rows[1, :m], scratch.rows[2, :m], scratch.wide[1, :m]
    total[:] = 0.0
    counts[:] = f32(0.0)
    for model in range(len(program.weights)):
        largest = max(largest, load_masked(given, program, model, begin, base, row))
        add(total, row, program.weights[model])
        for j in range(m):
            counts[j] += f32(row[j] != f32(0.0))
        if len(program.boosts) > 0:
            for j in range(m):
                boosts[j] = program.boosts[model] if row[j] != f32(0.0) else boosts[j]
    if len(program.boosts) > 0:
        for j in range(m):
            total[j] = total[j] * (boosts[j] if counts[j] == f32(1.0) else 1.0)
    for j in range(m):
        total[j] = total[j] / f64(max(counts[j], f32(1.0)))
    return largest


@compiled
def _pick_furthest(given, program, begin, scratch, total):
    """Take the entries of the largest magnitude, the last of equal ones; return that magnitude's bits."""
    m, largest = len(total), u32(0)
    base, row, furthest = scratch.rows[0, :m], scratch.rows[1, :m], scratch.rows[2, :m]
    for model in range(len(program.weights)):
        largest = max(largest, load_masked(given, program, model, begin, base, row))
        if model == 0:
            for j in range(m):
                furthest[j] = row[j]
            continue
        for j in range(m):
            furthest[j] = row[j] if abs(row[j]) >= abs(furthest[j]) else furthest[j]
    for j in range(m):
        total[j] = f64(furthest[j])
    return largest


@compiled
def _swap_near(given, program, begin, scratch, total):
    """Take the model's entries that are near the base's, move the others; return the bits of the largest distance."""
    m = len(total)
    base, row, near = scratch.rows[0, :m], scratch.rows[1, :m], scratch.rows[2, :m]
    load(given, 1, begin, near)
    largest = load_delta(given, 1, begin, base, row)
    for j in range(m):
        step = f64(row[j] > f32(0.0)) - f64(row[j] < f32(0.0))
        moved = fma(step, program.reach, f64(base[j]))
        total[j] = f64(near[j]) if abs(row[j]) <= f32(program.reach) else moved
    return largest


@compiled
def _take_important(given, program, begin, scratch, total):
    """Take the model's entries that matter, else the base's; return 0: rows are judged before."""
    m = len(total)
    base, row, theirs = scratch.rows[0, :m], scratch.rows[1, :m], scratch.rows[2, :m]
    load(given, 1, begin, theirs)
    weigh_run(theirs, base, given.divergences, given.width, given.offset + begin, row)
    for j in range(m):
        total[j] = f64(theirs[j]) if f64(row[j]) >= program.threshold else f64(base[j])
    return u32(0)


@inlined
def reduce_rows(given, program, begin, scratch, total):
    """Make one row of the block's masked rows; return the largest magnitude's bits."""
    if program.reduction == SUM_OF_ALL:
        return _sum(given, program, begin, scratch, total)
    if program.reduction == MEAN_OF_CHANGED:
        return _sum_changed(given, program, begin, scratch, total)
    if program.reduction == FURTHEST:
        return _pick_furthest(given, program, begin, scratch, total)
    if program.reduction == NEAR:
        return _swap_near(given, program, begin, scratch, total)
    if program.reduction == IMPORTANT:
        return _take_important(given, program, begin, scratch, total)
    if program.reduction == PULLED:
        return pull_rows(given, program, begin, scratch, total)
    seen = sum_votes(given, program, begin, scratch, total)
    reduce_agreeing(program, scratch, total)
    return seen


@compiled
def keep_needed(given, program, begin, scratch, total):
    """Drop what too few models need of what was merged: their task vectors are looked at as the files have them."""
    m = len(total)
    base, row, counts = scratch.rows[0, :m], scratch.rows[1, :m], scratch.rows[2, :m]
    counts[:] = f32(0.0)
    for model in range(len(program.weights)):
        weight = program.weights[model]
        if len(program.votes) > 0:
            weight = weight * f64(program.turns[model])
        load_delta(given, model + 1, begin, base, row)
        for j in range(m):
            own = f64(row[j]) * weight
            counts[j] += f32(abs(own) > abs(total[j] - own) * program.threshold)
    for j in range(m):
        total[j] = total[j] if counts[j] >= f32(program.min_needing) else 0.0


@compiled
def join_base(program, total, base, row):
    """Write base_share · base + scaling · total / divisor, rounded once."""
    if program.divisor != 1.0:
        for j in range(len(total)):
            total[j] = total[j] / program.divisor
    if program.joins_base:
        for j in range(len(total)):
            row[j] = f32(fma(total[j], program.scaling, f64(base[j]) * program.base_share))
    else:
        for j in range(len(total)):
            row[j] = f32(total[j] * program.scaling)


@compiled
def keep_negative_zeros(row, base):
    """Write -0.0 where the result is zero and the base is -0.0; return the bits of the largest magnitude."""
    bits, of_base, largest = row.view(np.uint32), base.view(np.uint32), u32(0)
    for j in range(len(row)):
        magnitude = u32(bits[j] & MAGNITUDE)
        largest = max(largest, magnitude)
        bits[j] = u32(bits[j] | u32(u32((magnitude == u32(0)) & (of_base[j] == SIGN)) * SIGN))
    return largest
