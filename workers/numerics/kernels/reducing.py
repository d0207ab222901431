"""From the rows of a block to one: what a program makes of them, and how that joins the base model."""

import numpy as np

from workers.fusion import BFLOAT16, FLOAT16
from workers.numerics.kernels.adding import add, add_both, add_both_stored, add_stored, start_both, start_both_stored
from workers.numerics.kernels.bits import MAGNITUDE, NOTHING, SIGN, as_bits, f32, f64, fma, i64, u32
from workers.numerics.kernels.blocks import load_masked
from workers.numerics.kernels.compiling import compiled, inlined
from workers.numerics.kernels.pulling import pull_rows
from workers.numerics.kernels.reading import halves_of, load, load_delta, rounded, words_of
from workers.numerics.kernels.scoring import weigh_run
from workers.numerics.kernels.voting import reduce_agreeing, sum_votes
from workers.numerics.programs import FURTHEST, IMPORTANT, MEAN_OF_CHANGED, NEAR, PULLED, SUM_OF_ALL


@compiled
def _sum(given, program, begin, scratch, total):
    """Sum the block's masked rows; return the largest magnitude's bits."""
    m, n, largest, model = len(total), len(program.weights), u32(0), 0
    is_whole = len(program.marks) == 0 and len(given.keys) == 0
    base, row, other, origin = scratch.rows[0, :m], scratch.rows[1, :m], scratch.rows[2, :m], scratch.rows[3, :m]
    if program.of_deltas:
        origin = base
    else:
        origin[:] = f32(0.0)
    weights, first = program.weights, i64(given.has_base)
    if n == 1 or given.kinds[first] != given.kinds[first + 1]:
        total[:] = NOTHING  # where no pair starts the sum
    while model < n:
        number, is_pair = model + i64(given.has_base), model + 1 < n
        kind = given.kinds[number]
        is_stored = is_whole and kind != FLOAT16
        if is_stored and is_pair and given.kinds[number + 1] == kind:
            seen = _add_stored_pair(given, number, begin, origin, total, weights[model : model + 2], model == 0)
            model += 2
        elif is_stored:
            seen = _add_stored_row(given, number, begin, origin, total, weights[model])
            model += 1
        elif is_pair:
            seen = load_masked(given, program, model, begin, base, row)
            seen = max(seen, load_masked(given, program, model + 1, begin, base, other))
            if model == 0:
                start_both(total, row, other, weights[0], weights[1])
            else:
                add_both(total, row, other, weights[model], weights[model + 1])
            model += 2
        else:
            seen = load_masked(given, program, model, begin, base, row)
            add(total, row, weights[model])
            model += 1
        largest = max(largest, seen)
    return largest


@compiled
def _add_stored_row(given, number, begin, origin, total, weight):
    if given.kinds[number] == BFLOAT16:
        return add_stored(total, halves_of(given, number, begin, len(total)), origin, weight)
    return add_stored(total, words_of(given, number, begin, len(total)), origin, weight)


@compiled
def _add_stored_pair(given, number, begin, origin, total, weights, starts):
    m, other = len(total), number + 1
    if given.kinds[number] == BFLOAT16:
        one, two = halves_of(given, number, begin, m), halves_of(given, other, begin, m)
        if starts:
            return start_both_stored(total, one, two, origin, weights[0], weights[1])
        return add_both_stored(total, one, two, origin, weights[0], weights[1])
    first, second = words_of(given, number, begin, m), words_of(given, other, begin, m)
    if starts:
        return start_both_stored(total, first, second, origin, weights[0], weights[1])
    return add_both_stored(total, first, second, origin, weights[0], weights[1])


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


@inlined
def _with_sign_of_zero(bits, of_base):
    """Return the bits of -0.0 where these are of a zero and the base's are of -0.0."""
    return u32(bits | u32(u32((u32(bits & MAGNITUDE) == u32(0)) & (of_base == SIGN)) * SIGN))


def _joining(*, joins_base, keeps_zeros, to_bfloat16):
    """Make a function that joins a sum to the base model, and writes it."""

    @compiled
    def join(program, total, base, out):
        largest, of_base = u32(0), base.view(np.uint32)
        for j in range(len(total)):
            share = fma(total[j], program.reciprocal, total[j] * program.rest)
            if joins_base:
                number = f32(fma(share, program.scaling, f64(base[j]) * program.base_share))
            else:
                number = f32(share * program.scaling)
            bits = as_bits(number)
            largest = max(largest, u32(bits & MAGNITUDE))
            if keeps_zeros:
                bits = _with_sign_of_zero(bits, of_base[j])
            out[j] = rounded(bits) if to_bfloat16 else bits
        return largest

    return join


_over_base, _over_base_rounded = (_joining(joins_base=True, keeps_zeros=True, to_bfloat16=to) for to in (False, True))
_beside_base, _beside_base_rounded = (
    _joining(joins_base=False, keeps_zeros=True, to_bfloat16=to) for to in (False, True)
)
_alone, _alone_rounded = (_joining(joins_base=False, keeps_zeros=False, to_bfloat16=to) for to in (False, True))


@compiled
def write_joined(program, total, base, has_base, place, out, to_bfloat16):
    """Write base_share · base + scaling · total / divisor as float32, -0.0 where that is zero and the base is -0.0.

    place: index of the first element within `out`; to_bfloat16: it is rounded to that, once more.
    Return the bits of the largest float32 magnitude.
    """
    behind = place + len(total)
    if program.divisor != 1.0:
        for j in range(len(total)):
            total[j] = total[j] / program.divisor
    if to_bfloat16:
        half = out[2 * place : 2 * behind].view(np.uint16)
        if program.joins_base:
            return _over_base_rounded(program, total, base, half)
        if has_base:
            return _beside_base_rounded(program, total, base, half)
        return _alone_rounded(program, total, base, half)
    word = out[4 * place : 4 * behind].view(np.uint32)
    if program.joins_base:
        return _over_base(program, total, base, word)
    return _beside_base(program, total, base, word) if has_base else _alone(program, total, base, word)


@compiled
def keep_negative_zeros(row, base):
    """Write -0.0 where the result is zero and the base is -0.0; return the bits of the largest magnitude."""
    bits, of_base, largest = row.view(np.uint32), base.view(np.uint32), u32(0)
    for j in range(len(row)):
        largest = max(largest, u32(bits[j] & MAGNITUDE))
        bits[j] = _with_sign_of_zero(bits[j], of_base[j])
    return largest
