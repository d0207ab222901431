"""The fused kernels: from rows as files hold them to merged numbers, block by block in the processor's first cache.

Compiled by numba when this module is imported, or loaded from its cache; only numerics/fused.py does so. Everything
stays in this one file: the cache does not notice a change in another. Loops are short and without branches, one after
the other over a block, because that is what becomes vector instructions; float64 sums use fused multiply-add, as
torch's do, so that both give the same bits. Nothing here reorders or approximates.
"""

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

BLOCK = 1024  # elements
GROUP = 32  # elements that are looked at together for keys within a window

f32, f64, i32, i64, u16, u32, u64 = np.float32, np.float64, np.int32, np.int64, np.uint16, np.uint32, np.uint64
MAGNITUDE = u32(0x7FFF_FFFF)
SIGN = u32(0x8000_0000)
INFINITY = u32(0x7F80_0000)
NOT_CLEAN = i64(0xFFFF_FFFF)
MEAN, LARGEST = 1, 3  # values of the flag that says how what agrees is reduced; 2: summed

_compiled = njit(nogil=True, error_model="numpy")


@intrinsic
def fma(_typing, _a, _b, _c):
    """Return a · b + c, rounded once."""

    def generate(_context, builder, _signature, arguments):
        return builder.fma(*arguments)

    return types.float64(types.float64, types.float64, types.float64), generate


# --- rows ---------------------------------------------------------------------------------------------------------


@_compiled
def _load(content, at, kind, begin, row):
    n = len(row)
    bits = row.view(np.uint32)
    if kind == 1:
        wide = content[at + 4 * begin : at + 4 * (begin + n)].view(np.uint32)
        for j in range(n):
            bits[j] = wide[j]
        return
    half = content[at + 2 * begin : at + 2 * (begin + n)].view(np.uint16)
    if kind == 0:
        for j in range(n):
            bits[j] = u32(u32(half[j]) << u32(16))
        return
    for j in range(n):
        bits[j] = u32(u32(half[j] & u16(0x7FFF)) << u32(13))
    for j in range(n):
        row[j] = f32(row[j] * f32(2.0**112))  # exact, also for subnormal numbers
    for j in range(n):
        bits[j] = u32(bits[j] | u32(u32(half[j] & u16(0x8000)) << u32(16)))


@_compiled
def _subtract(row, base):
    """Subtract the base; return the bits of the largest magnitude."""
    bits = row.view(np.uint32)
    largest = u32(0)
    for j in range(len(row)):
        row[j] = f32(row[j] - base[j])
        largest = max(largest, u32(bits[j] & MAGNITUDE))
    return largest


@_compiled
def _keep_between(row, lower, upper):
    bits = row.view(np.int32)
    for j in range(len(row)):
        magnitude = abs(row[j])
        bits[j] = i32(bits[j] & i32(i32(magnitude <= upper) * i32(-1)) & i32(i32(magnitude > lower) * i32(-1)))


@_compiled
def _keep_band(row, index, marks, ends):
    """Keep a band; marks: lower and upper magnitude, then the numbers just below; ends: their flat indices."""
    n = len(row)
    first, second = min(max(ends[0] - index, 0), n), min(max(ends[1] - index, 0), n)
    near, far = min(first, second), max(first, second)
    for begin, end in ((0, near), (near, far), (far, n)):
        lower = marks[2] if begin < first else marks[0]
        upper = marks[3] if begin < second else marks[1]
        if begin < end:
            _keep_between(row[begin:end], f32(lower), f32(upper))


@_compiled
def _keep_drawn(row, index, key, behind):
    for j in range(len(row)):
        state = u64(u64(index + j + 1) * u64(0x9E3779B97F4A7C15)) + key
        state = u64(state ^ (state >> u64(30))) * u64(0xBF58476D1CE4E5B9)
        state = u64(state ^ (state >> u64(27))) * u64(0x94D049BB133111EB)
        state = u64(state ^ (state >> u64(31)))
        row[j] = f32(row[j] * f32(i64(state >> u64(11)) < behind))


@_compiled
def _mask(row, index, kind, marks, ends, key):
    if kind == 1:
        _keep_band(row, index, marks, ends)
    elif kind == 2:
        _keep_drawn(row, index, key, ends[0])


@_compiled
def _scale(row, factor):
    for j in range(len(row)):
        row[j] = f32(row[j] * factor)


# --- sums ---------------------------------------------------------------------------------------------------------


@_compiled
def _begin_sum(total, row, weight):
    for j in range(len(row)):
        total[j] = f64(row[j]) * weight


@_compiled
def _add(total, row, weight):
    for j in range(len(row)):
        total[j] = fma(f64(row[j]), weight, total[j])


@_compiled
def _add_ones(total, row, weight):
    for j in range(len(row)):
        total[j] = fma(f64(row[j] > f32(0.0)), weight, total[j])


@_compiled
def _elect(total, nudge, elected):
    """Write the sign of total + nudge, as 1.0 or -1.0: with a nudge it is not zero."""
    bits = elected.view(np.uint32)
    for j in range(len(total)):
        total[j] = total[j] + nudge
    wide = total.view(np.uint64)
    for j in range(len(total)):
        bits[j] = u32(u32(u32(wide[j] >> u64(32)) & SIGN) | u32(0x3F800000))


@_compiled
def _balance(total):
    positive, negative = i64(0), i64(0)
    for j in range(len(total)):
        positive += i64(total[j] > 0.0)
        negative += i64(total[j] < 0.0)
    return positive - negative


@_compiled
def _keep_agreeing(row, elected):
    """Write the magnitude of what has the elected sign, 0 elsewhere."""
    for j in range(len(row)):
        turned = f32(row[j] * elected[j])
        row[j] = turned if turned > f32(0.0) else f32(0.0)


@_compiled
def _add_agreeing(total, counts, row, elected, weight):
    for j in range(len(row)):
        turned = f32(row[j] * elected[j])
        turned = turned if turned > f32(0.0) else f32(0.0)
        total[j] = fma(f64(turned), weight, total[j])
        counts[j] += f32(turned > f32(0.0))


@_compiled
def _take_larger(total, row, weight):
    for j in range(len(row)):
        other = f64(row[j]) * weight
        total[j] = other if other > total[j] else total[j]


@_compiled
def _turn(total, elected):
    for j in range(len(total)):
        total[j] = total[j] * f64(elected[j])


@_compiled
def _turn_over_counts(total, elected, counts, weight):
    for j in range(len(total)):
        total[j] = total[j] * f64(elected[j]) / (f64(max(counts[j], f32(1.0))) * weight)


@_compiled
def _turn_over_shares(total, elected, shares, smallest):
    for j in range(len(total)):
        total[j] = total[j] * f64(elected[j]) / max(shares[j], smallest)


# --- blocks of a merge --------------------------------------------------------------------------------------------


@_compiled
def _load_masked(content, at, kinds, begin, flags, masks, marks, ends, keys, index, base, row, model):
    """Load a model's row, form the task vector, drop what the mask drops; return the largest magnitude's bits."""
    first = flags[0]
    largest = u32(0)
    _load(content, at[first + model], kinds[first + model], begin, row)
    if flags[1]:
        largest = _subtract(row, base)
    _mask(row, index, masks[model], marks[model], ends[model], keys[model])
    return largest


@_compiled
def _reduce_agreeing(flags, weights, rows, total, shares, elected, counts):
    """Write the disjoint merge of the block's rows to `total`."""
    m = len(total)
    total[:] = 0.0
    counts[:] = f32(0.0)
    shares[:] = 0.0
    smallest = np.inf
    for model in range(len(weights)):
        row, weight = rows[1 + model, :m], weights[model]
        if 0.0 < weight < smallest:
            smallest = weight
        if flags[2] != LARGEST and not flags[3]:
            _add_agreeing(total, counts, row, elected, weight)
            continue
        _keep_agreeing(row, elected)
        if flags[2] == LARGEST:
            _take_larger(total, row, weight)
        else:
            _add(total, row, weight)
            _add_ones(shares, row, weight)
    if flags[2] != MEAN:
        _turn(total, elected)
    elif flags[3]:
        _turn_over_shares(total, elected, shares, smallest)
    else:
        _turn_over_counts(total, elected, counts, weights[0] if weights[0] != 0.0 else 1.0)


@_compiled
def _join_base(total, base, shares, flags, row):
    """Write base_share · base + scaling · total / divisor, rounded once."""
    scaling, divisor, base_share = shares[0], shares[1], shares[2]
    if divisor != 1.0:
        for j in range(len(total)):
            total[j] = total[j] / divisor
    if flags[4]:
        for j in range(len(total)):
            row[j] = f32(fma(total[j], scaling, f64(base[j]) * base_share))
    else:
        for j in range(len(total)):
            row[j] = f32(total[j])


@_compiled
def _keep_negative_zeros(row, base):
    """Write -0.0 where the result is zero and the base is -0.0; return the bits of the largest magnitude."""
    bits, of_base = row.view(np.uint32), base.view(np.uint32)
    largest = u32(0)
    for j in range(len(row)):
        magnitude = u32(bits[j] & MAGNITUDE)
        largest = max(largest, magnitude)
        bits[j] = u32(bits[j] | u32(u32((magnitude == u32(0)) & (of_base[j] == SIGN)) * SIGN))
    return largest


@_compiled
def _largest(row):
    bits = row.view(np.uint32)
    largest = u32(0)
    for j in range(len(row)):
        largest = max(largest, u32(bits[j] & MAGNITUDE))
    return largest


@_compiled
def _round_to_bfloat16(row, out):
    bits = row.view(np.uint32)
    for j in range(len(row)):
        out[j] = u16(u32(u32(bits[j] + u32(0x7FFF)) + u32(u32(bits[j] >> u32(16)) & u32(1))) >> u32(16))


@_compiled
def _vote(content, at, kinds, begin, flags, votes, turns, masks, marks, ends, keys, index, rows, total):
    """Load the block's masked and turned rows, sum their votes; return the largest magnitude's bits."""
    largest = u32(0)
    base = rows[0, : len(total)]
    for model in range(len(votes)):
        row = rows[1 + model, : len(total)]
        seen = _load_masked(content, at, kinds, begin, flags, masks, marks, ends, keys, index, base, row, model)
        largest = max(largest, seen)
        if turns[model] != f32(1.0):
            _scale(row, turns[model])
        if model == 0:
            _begin_sum(total, row, votes[0])
        else:
            _add(total, row, votes[model])
    return largest


@_compiled
def _sum(content, at, kinds, begin, flags, weights, masks, marks, ends, keys, index, rows, total):
    """Sum the block's masked rows; return the largest magnitude's bits."""
    largest = u32(0)
    base, row = rows[0, : len(total)], rows[1, : len(total)]
    for model in range(len(weights)):
        seen = _load_masked(content, at, kinds, begin, flags, masks, marks, ends, keys, index, base, row, model)
        largest = max(largest, seen)
        if model == 0:
            _begin_sum(total, row, weights[0])
        else:
            _add(total, row, weights[model])
    return largest


# --- what is called -----------------------------------------------------------------------------------------------

_bytes, _ints, _floats = types.uint8[::1], types.int64[::1], types.float64[::1]
_program = (
    _bytes, _ints, _ints, types.int64, types.int64, _ints, _floats, _floats, _floats, types.float32[::1],
    _ints, types.float64[:, ::1], types.int64[:, ::1], types.uint64[::1], types.float32[:, ::1], types.float64[:, ::1],
)  # fmt: skip


@njit([types.int64(*_program, _bytes)], nogil=True, error_model="numpy", cache=True)
def merge(
    content, at, kinds, n, offset, flags, shares, weights, votes, turns, masks, marks, ends, keys, rows, wide, out
):
    """Merge n elements into `out`; return the bits of the largest magnitude, or NOT_CLEAN if a task vector overflows."""
    largest = u32(0)
    for begin in range(0, n, BLOCK):
        m = min(BLOCK, n - begin)
        base, row, total = rows[0, :m], rows[1, :m], wide[0, :m]
        index = offset + begin
        if flags[0]:
            _load(content, at[0], kinds[0], begin, base)
        if flags[2]:
            seen = _vote(content, at, kinds, begin, flags, votes, turns, masks, marks, ends, keys, index, rows, total)
            _elect(total, shares[3], rows[len(rows) - 1, :m])
            _reduce_agreeing(flags, weights, rows, total, wide[1, :m], rows[len(rows) - 1, :m], rows[len(rows) - 2, :m])
        else:
            seen = _sum(content, at, kinds, begin, flags, weights, masks, marks, ends, keys, index, rows, total)
        if flags[1] and seen >= INFINITY:
            return NOT_CLEAN
        _join_base(total, base, shares, flags, row)
        largest = max(largest, _keep_negative_zeros(row, base) if flags[0] else _largest(row))
        if flags[5] == 0:
            _round_to_bfloat16(row, out[2 * begin : 2 * (begin + m)].view(np.uint16))
        else:
            out[4 * begin : 4 * (begin + m)].view(np.float32)[:] = row
    return i64(largest)


@njit([types.int64(*_program)], nogil=True, error_model="numpy", cache=True)
def count_signs(
    content, at, kinds, n, offset, flags, _shares, _weights, votes, turns, masks, marks, ends, keys, rows, wide
):
    """Return how many more of n elements elect 1 than -1; those whose votes balance count for neither."""
    balance = i64(0)
    for begin in range(0, n, BLOCK):
        m = min(BLOCK, n - begin)
        total = wide[0, :m]
        _load(content, at[0], kinds[0], begin, rows[0, :m])
        _vote(content, at, kinds, begin, flags, votes, turns, masks, marks, ends, keys, offset + begin, rows, total)
        balance += _balance(total)
    return balance


@njit([types.UniTuple(types.int64, 2)(_bytes, _ints, _ints, types.int64, types.int64, types.int64, types.int32, types.int32,
       types.float32[:, ::1], types.int32[::1])], nogil=True, error_model="numpy", cache=True)  # fmt: skip
def count_keys(content, at, kinds, n, first, row, low, high, rows, found):
    """Return how many keys of a row lie above a window, and how many within; write those to `found`."""
    n_above, n_found = i64(0), i64(0)
    for begin in range(0, n, BLOCK):
        m = min(BLOCK, n - begin)
        values = rows[1, :m]
        _load(content, at[row], kinds[row], begin, values)
        if first:
            _load(content, at[0], kinds[0], begin, rows[0, :m])
            _subtract(values, rows[0, :m])
        keys = values.view(np.int32)
        for j in range(m):
            keys[j] = i32(keys[j] & i32(0x7FFF_FFFF))
        for group in range(0, m, GROUP):
            some = keys[group : min(m, group + GROUP)]
            above, upwards = i32(0), i32(0)
            for j in range(len(some)):
                above = i32(above + i32(some[j] > high))
                upwards = i32(upwards + i32(some[j] >= low))
            n_above += above
            if upwards != above:
                for j in range(len(some)):
                    if low <= some[j] <= high:
                        found[n_found] = some[j]
                        n_found += 1
    return n_above, n_found
