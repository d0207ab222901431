"""The fused kernels: from rows as files hold them to merged numbers, block by block in the processor's first cache.

Compiled by numba when this module is imported, or loaded from its cache; only numerics/fused.py does so. Everything
stays in this one file, long as it is: the cache does not notice a change in another. Loops are short and without
branches, one after the other over a block, because that is what becomes vector instructions; float64 sums use fused
multiply-add, as torch's do, so that both give the same bits. Nothing here reorders or approximates.
"""

import numpy as np
from llvmlite.ir import FloatType, IntType
from numba import njit, types
from numba.extending import intrinsic

from workers.fusion import BFLOAT16, FLOAT16, FLOAT32, NO_FILE, PART
from workers.numerics.programs import (
    BAND,
    BLOCK,
    DRAW,
    FURTHEST,
    LARGEST,
    MEAN,
    MEAN_OF_CHANGED,
    NO_MASK,
    NOT_CLEAN,
    PRODUCT_BLOCK,
    SUM_OF_ALL,
    Input,
    Program,
    Scratch,
    Windows,
)

SHORT = 48  # width of rows that are sorted by insertion
JUDGES = True
GROUP = 32  # elements that are looked at together for keys within a window

f32, f64, i32, i64, u16, u32, u64 = np.float32, np.float64, np.int32, np.int64, np.uint16, np.uint32, np.uint64
MAGNITUDE = u32(0x7FFF_FFFF)
SIGN = u32(0x8000_0000)
NOTHING = -0.0  # where sums begin: x added to it is x, whatever the sign of a zero
INFINITY = u32(0x7F80_0000)
ONE = u32(0x3F80_0000)

_compiled = njit(nogil=True, error_model="numpy")
_floats, _integers, _wide_rows = types.float64[::1], types.int64[::1], types.float32[:, ::1]
_input = types.NamedTuple(
    (
        types.uint8[::1], _integers, _integers, _integers, _integers, types.int64, types.int64, types.boolean,
    ), Input,
)  # fmt: skip
_program = types.NamedTuple(
    (
        types.boolean, types.int64, _floats, types.boolean, _floats, types.float64, types.float32[::1], _integers,
        types.float64[:, ::1], types.int64[:, ::1], types.uint64[::1], types.boolean, types.float64, types.float64,
        types.float64,
    ), Program,
)  # fmt: skip
_windows = types.NamedTuple((_integers, types.int32[::1], types.int32[::1]), Windows)
_scratch = types.NamedTuple((types.float32[:, ::1], types.float64[:, ::1]), Scratch)
_pread = types.ExternalFunction("pread", types.int64(types.int32, types.voidptr, types.uint64, types.int64))


def _called(*signature):
    return njit([signature[0](*signature[1:])], nogil=True, error_model="numpy", cache=True)


@intrinsic
def fma(_typing, _a, _b, _c):
    """Return a · b + c, rounded once."""

    def generate(_context, builder, _signature, arguments):
        return builder.fma(*arguments)

    return types.float64(types.float64, types.float64, types.float64), generate


@intrinsic
def as_float(_typing, _bits):
    """Return the float32 that has these bits."""

    def generate(_context, builder, _signature, arguments):
        return builder.bitcast(arguments[0], FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def as_bits(_typing, _number):
    """Return the bits of a float32."""

    def generate(_context, builder, _signature, arguments):
        return builder.bitcast(arguments[0], IntType(32))

    return types.uint32(types.float32), generate


# --- rows ---------------------------------------------------------------------------------------------------------


@_compiled
def _fill(file, place, out):
    """Read bytes of a file, and tell whether they are all there; whoever wants to know why not reads them again."""
    done = 0
    while done < len(out):
        n_bytes = _pread(i32(file), out[done:].ctypes, u64(len(out) - done), place + done)
        if n_bytes <= 0:
            return False
        done += n_bytes
    return True


@_called(types.boolean, types.int64, types.int64, types.int64, types.uint8[:, ::1])
def read_rows(file, place, stride, out):
    """Read rows of bytes that begin `stride` bytes from each other, and tell whether they are all there."""
    n_read = 0
    for row in range(len(out)):
        n_read += _fill(file, place + row * stride, out[row])
    return n_read == len(out)


@_compiled
def _is_finite(content, kind):
    if kind == FLOAT32:
        wide, largest = content.view(np.uint32), u32(0)
        for j in range(len(wide)):
            largest = max(largest, u32(wide[j] & MAGNITUDE))
        return largest < INFINITY
    half, most = content.view(np.uint16), u16(0)
    for j in range(len(half)):
        most = max(most, u16(half[j] & u16(0x7FFF)))
    return most < (u16(0x7F80) if kind == BFLOAT16 else u16(0x7C00))


@_compiled
def _read_part(given, begin, n, at, judges):
    """Bring a part of all rows into the content, write where they begin to `at`, tell whether all of it is finite.

    judges: False where task vectors are formed and judged, which are not finite where a row is not; save that the
    infinity of float16 is a finite float32.
    """
    for number in range(len(at)):
        item = 4 if given.kinds[number] == FLOAT32 else 2
        if given.files[number] == NO_FILE:
            at[number] = given.at[number] + item * begin
        else:
            at[number] = given.at[number]
        row = given.content[at[number] : at[number] + item * n]
        if given.files[number] != NO_FILE and not _fill(given.files[number], given.places[number] + item * begin, row):
            return False
        if (judges or given.kinds[number] == FLOAT16) and not _is_finite(row, given.kinds[number]):
            return False
    return True


@_compiled
def _part(given, begin, n, at):
    return Input(given.content, at, given.kinds, given.files, given.places, n, given.offset + begin, given.has_base)


@_compiled
def _load(given, number, begin, row):
    """Read a row's elements from `begin` on as float32; number: of the row, the base's first."""
    content, at, kind, n = given.content, given.at[number], given.kinds[number], len(row)
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
def _load_delta(given, number, begin, base, row):
    """Read a row's elements from `begin` on, less the base; return the bits of the largest magnitude."""
    if given.kinds[number] != BFLOAT16:
        _load(given, number, begin, row)
        return _subtract(row, base)
    at, bits, largest = given.at[number] + 2 * begin, row.view(np.uint32), u32(0)
    half = given.content[at : at + 2 * len(row)].view(np.uint16)
    for j in range(len(row)):
        delta = f32(as_float(u32(u32(half[j]) << u32(16))) - base[j])
        bits[j] = as_bits(delta)
        largest = max(largest, u32(as_bits(delta) & MAGNITUDE))
    return largest


@_compiled
def _keep_between(row, lower, upper):
    bits = row.view(np.int32)
    for j in range(len(row)):
        magnitude = abs(row[j])
        bits[j] = i32(bits[j] & i32(i32(magnitude <= upper) * i32(-1)) & i32(i32(magnitude > lower) * i32(-1)))


@_compiled
def _keep_band(row, index, marks, ends):
    """Keep a band of a row whose first element has flat index `index`."""
    n = len(row)
    first, second = min(max(ends[0] - index, 0), n), min(max(ends[1] - index, 0), n)
    near, far = min(first, second), max(first, second)
    for begin, end in ((0, near), (near, far), (far, n)):
        lower = marks[2] if begin < first else marks[0]
        upper = marks[3] if begin < second else marks[1]
        if begin < end:
            _keep_between(row[begin:end], f32(lower), f32(upper))


@_compiled
def _draw(index, key):
    state = u64(u64(index + 1) * u64(0x9E3779B97F4A7C15)) + key
    state = u64(state ^ (state >> u64(30))) * u64(0xBF58476D1CE4E5B9)
    state = u64(state ^ (state >> u64(27))) * u64(0x94D049BB133111EB)
    return i64(u64(state ^ (state >> u64(31))) >> u64(11))


@_compiled
def _keep_drawn(row, index, key, behind):
    for j in range(len(row)):
        row[j] = f32(row[j] * f32(_draw(index + j, key) < behind))


@_compiled
def _mask(program, model, row, index):
    if program.masks[model] == BAND:
        _keep_band(row, index, program.marks[model], program.ends[model])
    elif program.masks[model] == DRAW:
        _keep_drawn(row, index, program.keys[model], program.ends[model, 0])
        if program.marks[model, 0] != 1.0:
            _divide(row, program.marks[model, 0])
        if program.marks[model, 1] != 1.0:
            _multiply(row, program.marks[model, 1])


@_compiled
def _divide(row, divisor):
    for j in range(len(row)):
        row[j] = f32(f64(row[j]) / divisor)


@_compiled
def _multiply(row, factor):
    for j in range(len(row)):
        row[j] = f32(f64(row[j]) * factor)


@_compiled
def _scale(row, factor):
    for j in range(len(row)):
        row[j] = f32(row[j] * factor)


# --- ranks within rows --------------------------------------------------------------------------------------------


@_compiled
def _rank(row, order, counts):
    """Return which half of `order` holds the columns, its lower 32 bits, by (magnitude ascending, column descending).

    order: [2, width]; counts: [4, 256]. A radix sort by the magnitude's bytes, in the upper 32 bits; short rows are
    inserted one by one.
    """
    width, bits = len(row), row.view(np.uint32)
    for j in range(width):
        column = width - 1 - j
        order[0, j] = u64(u64(bits[column] & MAGNITUDE) << u64(32)) | u64(column)
    if width <= SHORT:
        _insert(order[0])
        return 0
    counts[:] = 0
    for j in range(width):
        for digit in range(4):
            counts[digit, i64(u64(order[0, j] >> u64(32 + 8 * digit)) & u64(255))] += 1
    half = 0
    for digit in range(4):
        if _move_by_digit(order[half], order[1 - half], counts[digit], u64(32 + 8 * digit)):
            half = 1 - half
    return half


@_compiled
def _insert(order):
    for j in range(1, len(order)):
        entry, i = order[j], j
        while i > 0 and u64(order[i - 1] >> u64(32)) > u64(entry >> u64(32)):
            order[i] = order[i - 1]
            i -= 1
        order[i] = entry


@_compiled
def _move_by_digit(entries, out, counts, shift):
    """Sort by one digit, keeping the order of equals, and return whether there was anything to sort."""
    if counts[i64(u64(entries[0] >> shift) & u64(255))] == len(entries):
        return False
    place = i64(0)
    for value in range(256):
        place, counts[value] = place + counts[value], place
    for j in range(len(entries)):
        value = i64(u64(entries[j] >> shift) & u64(255))
        out[counts[value]] = entries[j]
        counts[value] += 1
    return True


# --- sums ---------------------------------------------------------------------------------------------------------


@_compiled
def _sum_by_exponent(row, sums):
    """Add magnitudes as integers times powers of two, exponent by exponent; see numerics/exact_sums.py."""
    bits = row.view(np.uint32)
    for j in range(len(row)):
        exponent = u32(u32(bits[j] >> u32(23)) & u32(0xFF))
        sums[i64(exponent)] += i64(u32(u32(bits[j] & u32(0x7FFFFF)) | u32(u32(exponent > u32(0)) << u32(23))))


@_compiled
def _add_bfloat16(total, half, origin, weight):
    """Add a row's differences from the origin; return the bits of the largest magnitude."""
    largest = u32(0)
    for j in range(len(half)):
        delta = f32(as_float(u32(u32(half[j]) << u32(16))) - origin[j])
        largest = max(largest, u32(as_bits(delta) & MAGNITUDE))
        total[j] = fma(f64(delta), weight, total[j])
    return largest


@_compiled
def _add_float32(total, bits, origin, weight):
    """Do as `_add_bfloat16`; bits: those of float32 numbers."""
    largest = u32(0)
    for j in range(len(bits)):
        delta = f32(as_float(bits[j]) - origin[j])
        largest = max(largest, u32(as_bits(delta) & MAGNITUDE))
        total[j] = fma(f64(delta), weight, total[j])
    return largest


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
        bits[j] = u32(u32(u32(wide[j] >> u64(32)) & SIGN) | ONE)


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


# --- blocks -------------------------------------------------------------------------------------------------------


@_compiled
def _load_masked(given, program, model, begin, base, row):
    """Load a model's row, form the task vector, drop what the mask drops; return the largest magnitude's bits."""
    largest, number = u32(0), model + i64(given.has_base)
    if program.of_deltas:
        largest = _load_delta(given, number, begin, base, row)
    else:
        _load(given, number, begin, row)
    _mask(program, model, row, given.offset + begin)
    return largest


@_compiled
def _sum(given, program, begin, scratch, total):
    """Sum the block's masked rows; return the largest magnitude's bits."""
    m, largest = len(total), u32(0)
    base, row, origin = scratch.rows[0, :m], scratch.rows[1, :m], scratch.rows[2, :m]
    total[:] = NOTHING
    if program.of_deltas:
        origin = base
    else:
        origin[:] = f32(0.0)
    for model in range(len(program.weights)):
        number, weight = model + i64(given.has_base), program.weights[model]
        kind, at = given.kinds[number], given.at[number]
        if program.masks[model] != NO_MASK or kind == FLOAT16:
            seen = _load_masked(given, program, model, begin, base, row)
            _add(total, row, weight)
        elif kind == BFLOAT16:
            half = given.content[at + 2 * begin : at + 2 * (begin + m)].view(np.uint16)
            seen = _add_bfloat16(total, half, origin, weight)
        else:
            bits = given.content[at + 4 * begin : at + 4 * (begin + m)].view(np.uint32)
            seen = _add_float32(total, bits, origin, weight)
        largest = max(largest, seen)
    return largest


@_compiled
def _sum_changed(given, program, begin, scratch, total):
    """Average the block's masked rows over those that are not zero; return the largest magnitude's bits."""
    m, largest = len(total), u32(0)
    base, row, counts = scratch.rows[0, :m], scratch.rows[1, :m], scratch.rows[2, :m]
    total[:] = 0.0
    counts[:] = f32(0.0)
    for model in range(len(program.weights)):
        largest = max(largest, _load_masked(given, program, model, begin, base, row))
        _add(total, row, program.weights[model])
        for j in range(m):
            counts[j] += f32(row[j] != f32(0.0))
    for j in range(m):
        total[j] = total[j] / f64(max(counts[j], f32(1.0)))
    return largest


@_compiled
def _pick_furthest(given, program, begin, scratch, total):
    """Take the entries of the largest magnitude, the last of equal ones; return that magnitude's bits."""
    m, largest = len(total), u32(0)
    base, row, furthest = scratch.rows[0, :m], scratch.rows[1, :m], scratch.rows[2, :m]
    for model in range(len(program.weights)):
        largest = max(largest, _load_masked(given, program, model, begin, base, row))
        if model == 0:
            furthest[:] = row
            continue
        for j in range(m):
            furthest[j] = row[j] if abs(row[j]) >= abs(furthest[j]) else furthest[j]
    for j in range(m):
        total[j] = f64(furthest[j])
    return largest


@_compiled
def _vote(given, program, begin, scratch, total):
    """Sum the votes of the block's masked rows, and keep those; return the largest magnitude's bits."""
    largest = u32(0)
    base = scratch.rows[0, : len(total)]
    total[:] = NOTHING
    for model in range(len(program.votes)):
        row = scratch.rows[1 + model, : len(total)]
        largest = max(largest, _load_masked(given, program, model, begin, base, row))
        if program.turns[model] != f32(1.0):
            _scale(row, program.turns[model])
        _add(total, row, program.votes[model])
    return largest


@_compiled
def _reduce_agreeing(program, scratch, total):
    """Replace the votes' sum by the disjoint merge of the rows that `_vote` has kept."""
    m = len(total)
    counts, elected = scratch.rows[len(scratch.rows) - 2, :m], scratch.rows[len(scratch.rows) - 1, :m]
    shares = scratch.wide[1, :m]
    _elect(total, program.nudge, elected)
    total[:] = 0.0
    counts[:] = f32(0.0)
    shares[:] = 0.0
    smallest = np.inf
    for model in range(len(program.weights)):
        row, weight = scratch.rows[1 + model, :m], program.weights[model]
        smallest = weight if 0.0 < weight < smallest else smallest
        if program.reduction != LARGEST and not program.weights_differ:
            _add_agreeing(total, counts, row, elected, weight)
            continue
        _keep_agreeing(row, elected)
        if program.reduction == LARGEST:
            _take_larger(total, row, weight)
        else:
            _add(total, row, weight)
            _add_ones(shares, row, weight)
    if program.reduction != MEAN:
        _turn(total, elected)
    elif program.weights_differ:
        _turn_over_shares(total, elected, shares, smallest)
    else:
        _turn_over_counts(total, elected, counts, program.weights[0] if program.weights[0] != 0.0 else 1.0)


@_compiled
def _reduce(given, program, begin, scratch, total):
    """Make one row of the block's masked rows; return the largest magnitude's bits."""
    if program.reduction == SUM_OF_ALL:
        return _sum(given, program, begin, scratch, total)
    if program.reduction == MEAN_OF_CHANGED:
        return _sum_changed(given, program, begin, scratch, total)
    if program.reduction == FURTHEST:
        return _pick_furthest(given, program, begin, scratch, total)
    seen = _vote(given, program, begin, scratch, total)
    _reduce_agreeing(program, scratch, total)
    return seen


@_compiled
def _join_base(program, total, base, row):
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


@_compiled
def _keep_negative_zeros(row, base):
    """Write -0.0 where the result is zero and the base is -0.0."""
    bits, of_base = row.view(np.uint32), base.view(np.uint32)
    for j in range(len(row)):
        is_zero = (u32(bits[j] & MAGNITUDE) == u32(0)) & (of_base[j] == SIGN)
        bits[j] = u32(bits[j] | u32(u32(is_zero) * SIGN))


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
def _count_above(keys, high):
    above = i32(0)
    for j in range(len(keys)):
        above = i32(above + i32(keys[j] > high))
    return i64(above)


@_compiled
def _count_equal(keys, key):
    equal = i32(0)
    for j in range(len(keys)):
        equal = i32(equal + i32(keys[j] == key))
    return i64(equal)


@_compiled
def _has_between(keys, low, span):
    """Tell whether a key lies between low and low + span."""
    hit = i32(0)
    for j in range(len(keys)):
        hit = i32(hit | i32(u32(keys[j] - low) <= span))
    return hit != 0


@_compiled
def _find_between(keys, low, high, found, n_found):
    """Append the keys within a window to what was found; return how many are found now."""
    span = u32(high - low)
    for begin in range(0, len(keys), GROUP):
        group = keys[begin : min(len(keys), begin + GROUP)]
        if _has_between(group, low, span):
            for j in range(len(group)):
                found[n_found] = group[j]
                n_found += i64(u32(group[j] - low) <= span)
    return n_found


@_compiled
def _load_keys(given, model, begin, base, row):
    """Read the bits of a model's magnitudes, or of its task vector's, into the row, as int32."""
    if given.has_base:
        _load_delta(given, model + 1, begin, base, row)
    else:
        _load(given, model, begin, row)
    keys = row.view(np.int32)
    for j in range(len(row)):
        keys[j] = i32(keys[j] & i32(MAGNITUDE))
    return keys


# --- parts: what lies in the second cache ---------------------------------------------------------------------------


@_compiled
def _merge_part(given, program, scratch, out, to_bfloat16):
    """Merge into `out`; return the bits of the largest magnitude, or NOT_CLEAN where a task vector overflows."""
    largest = u32(0)
    for begin in range(0, given.n_elements, BLOCK):
        m = min(BLOCK, given.n_elements - begin)
        base, row, total = scratch.rows[0, :m], scratch.rows[1, :m], scratch.wide[0, :m]
        if given.has_base:
            _load(given, 0, begin, base)
        if _reduce(given, program, begin, scratch, total) >= INFINITY:
            return NOT_CLEAN
        _join_base(program, total, base, row)
        if given.has_base:
            _keep_negative_zeros(row, base)
        largest = max(largest, _largest(row))
        if to_bfloat16:
            _round_to_bfloat16(row, out[2 * begin : 2 * (begin + m)].view(np.uint16))
        else:
            out[4 * begin : 4 * (begin + m)].view(np.float32)[:] = row
    return i64(largest)


@_compiled
def _count_signs_of_part(given, program, scratch):
    balance = i64(0)
    for begin in range(0, given.n_elements, BLOCK):
        m = min(BLOCK, given.n_elements - begin)
        if given.has_base:
            _load(given, 0, begin, scratch.rows[0, :m])
        _vote(given, program, begin, scratch, scratch.wide[0, :m])
        balance += _balance(scratch.wide[0, :m])
    return balance


@_compiled
def _count_keys_of_part(given, windows, scratch, found, counts):
    for begin in range(0, given.n_elements, BLOCK):
        m = min(BLOCK, given.n_elements - begin)
        base, row = scratch.rows[0, :m], scratch.rows[1, :m]
        if given.has_base:
            _load(given, 0, begin, base)
        for model in range(len(windows.of_model) - 1):
            first, behind = windows.of_model[model], windows.of_model[model + 1]
            if first == behind:
                continue
            keys = _load_keys(given, model, begin, base, row)
            for window in range(first, behind):
                low, high = windows.lows[window], windows.highs[window]
                counts[window, 0] += _count_above(keys, high)
                counts[window, 1] = _find_between(keys, low, high, found[window], counts[window, 1])


@_compiled
def _find_key_of_part(given, model, key, missing, scratch):
    """Return the index of the `missing`-th entry that has the key and 0, or -1 and how many are missing then."""
    for begin in range(0, given.n_elements, BLOCK):
        m = min(BLOCK, given.n_elements - begin)
        base, row = scratch.rows[0, :m], scratch.rows[1, :m]
        if given.has_base:
            _load(given, 0, begin, base)
        keys = _load_keys(given, model, begin, base, row)
        equal = _count_equal(keys, key)
        if equal < missing:
            missing -= equal
            continue
        for j in range(m):
            missing -= i64(keys[j] == key)
            if missing == 0:
                return i64(begin + j), i64(0)
    return i64(-1), missing


@_compiled
def _inner_product(one, other, tree):
    """Sum products, which float64 holds exactly, halving by halving, as precision.inner_products does."""
    m, half = len(one), 1
    while 2 * half < m:
        half = 2 * half
    far, other_far = one[half:], other[half:]
    n_far = len(far)
    for j in range(n_far):
        tree[j] = fma(f64(far[j]), f64(other_far[j]), f64(one[j]) * f64(other[j]))  # the products are exact
    for j in range(n_far, min(half, m)):
        tree[j] = f64(one[j]) * f64(other[j])
    while half > 1:
        half = half // 2
        low, high = tree[:half], tree[half : 2 * half]
        for j in range(half):
            low[j] = low[j] + high[j]
    return tree[0]


@_compiled
def _load_vectors(given, begin, base, vectors):
    """Write the task vectors' elements from `begin` on, or the models' where there is no base, to `vectors`, [n, m]."""
    if given.has_base:
        _load(given, 0, begin, base)
    for model in range(len(vectors)):
        if given.has_base:
            _load_delta(given, model + 1, begin, base, vectors[model])
        else:
            _load(given, model, begin, vectors[model])


@_compiled
def _multiply_pairs(vectors, tree, out):
    """Write the inner products of all pairs of n vectors, [n, m], to `out`, [n, n]."""
    for first in range(len(vectors)):
        for second in range(first, len(vectors)):
            product = _inner_product(vectors[first], vectors[second], tree)
            out[first, second] = product
            out[second, first] = product


@_compiled
def _sum_norms_of_part(given, program, scratch, sums):
    for begin in range(0, given.n_elements, BLOCK):
        m = min(BLOCK, given.n_elements - begin)
        base, row = scratch.rows[0, :m], scratch.rows[1, :m]
        if given.has_base:
            _load(given, 0, begin, base)
        for model in range(len(program.masks)):
            if program.of_deltas:
                _load_delta(given, model + 1, begin, base, row)
            else:
                _load(given, model + i64(given.has_base), begin, row)
            _sum_by_exponent(row, sums[0, model])
            _mask(program, model, row, given.offset + begin)
            _sum_by_exponent(row, sums[1, model])


# --- what is called -----------------------------------------------------------------------------------------------


@_called(types.int64, _input, _program, _scratch, types.uint8[::1], types.boolean)
def merge(given, program, scratch, out, to_bfloat16):
    """Merge into `out`; return the bits of the largest magnitude, or NOT_CLEAN.

    Not clean are rows that cannot be read or are not finite, and task vectors that overflow.
    """
    largest, at, item = i64(0), np.empty_like(given.at), 2 if to_bfloat16 else 4
    for begin in range(0, given.n_elements, PART):
        n = min(PART, given.n_elements - begin)
        if not _read_part(given, begin, n, at, not program.of_deltas):
            return NOT_CLEAN
        part = _part(given, begin, n, at)
        largest = max(largest, _merge_part(part, program, scratch, out[item * begin : item * (begin + n)], to_bfloat16))
    return largest


@_called(types.UniTuple(types.int64, 2), _input, _program, _scratch)
def count_signs(given, program, scratch):
    """Return how many more elements elect 1 than -1, those whose votes balance counting for neither, and 0.

    Or NOT_CLEAN in place of the 0, as for `merge`.
    """
    balance, at = i64(0), np.empty_like(given.at)
    for begin in range(0, given.n_elements, PART):
        n = min(PART, given.n_elements - begin)
        if not _read_part(given, begin, n, at, JUDGES):
            return i64(0), NOT_CLEAN
        balance += _count_signs_of_part(_part(given, begin, n, at), program, scratch)
    return balance, i64(0)


@_called(types.int64, _input, _windows, _scratch, types.int32[:, ::1], types.int64[:, ::1])
def count_keys(given, windows, scratch, found, counts):
    """Write to `counts` how many keys lie above each window and how many within, to `found` those within.

    found: [n_windows, n_elements]; counts: [n_windows, 2]. Returns 0 or NOT_CLEAN, as for `merge`.
    """
    at = np.empty_like(given.at)
    counts[:] = 0
    for begin in range(0, given.n_elements, PART):
        n = min(PART, given.n_elements - begin)
        if not _read_part(given, begin, n, at, JUDGES):
            return NOT_CLEAN
        _count_keys_of_part(_part(given, begin, n, at), windows, scratch, found, counts)
    return i64(0)


@_called(types.int64, _input, _program, _scratch, types.int64[:, :, ::1])
def sum_norms(given, program, scratch, sums):
    """Write the sums of each task vector's magnitudes to `sums`, as its mask finds and as it leaves them.

    sums: [2, n_models, 256], by exponent. Returns 0 or NOT_CLEAN, as for `merge`.
    """
    at = np.empty_like(given.at)
    sums[:] = 0
    for begin in range(0, given.n_elements, PART):
        n = min(PART, given.n_elements - begin)
        if not _read_part(given, begin, n, at, JUDGES):
            return NOT_CLEAN
        _sum_norms_of_part(_part(given, begin, n, at), program, scratch, sums)
    return i64(0)


@_called(types.void, types.float32[::1], types.int64[::1])
def sum_magnitudes(numbers, sums):
    """Add the sum of magnitudes to `sums`, [256], by exponent."""
    _sum_by_exponent(numbers, sums)


@_called(types.void, types.float32[::1], types.int64, types.uint64, types.int64, types.float64)
def draw(vector, index, key, behind, divisor):
    """Drop, in place, what is not drawn, and divide the rest; index: flat, of the first element."""
    _keep_drawn(vector, index, key, behind)
    if divisor != 1.0:
        _divide(vector, divisor)


@_called(types.void, types.float32[:, ::1], types.int64, types.uint64, _integers, _floats)
def draw_ranked(rows, index, key, behinds, divisors):
    """Drop, in place, what is not drawn, and divide the rest, by its rank within its row; index: of the first element.

    behinds, divisors: [width], the smallest magnitude's first.
    """
    n_rows, width = rows.shape
    order, counts = np.empty((2, width), dtype=np.uint64), np.empty((4, 256), dtype=np.int64)
    for i in range(n_rows):
        row = rows[i]
        half = _rank(row, order, counts)
        for rank in range(width):
            column = i64(order[half, rank] & u64(0xFFFF_FFFF))
            kept = f32(row[column] * f32(_draw(index + i * width + column, key) < behinds[rank]))
            row[column] = f32(f64(kept) / divisors[rank])


@_called(types.void, types.float32[:, :, ::1], types.float64[:, :, ::1])
def inner_products(vectors, out):
    """Write the inner products of all pairs of n vectors, [n, batch, m] with m > 0, to `out`, [batch, n, n]."""
    _, batch, m = vectors.shape
    tree = np.empty(m, dtype=np.float64)
    for index in range(batch):
        _multiply_pairs(vectors[:, index], tree, out[index])


@_called(types.int64, _input, _wide_rows, _wide_rows, _wide_rows, types.float64[:, :, ::1])
def multiply_blocks(given, vectors, head, tail, products):
    """Multiply all pairs of task vectors, or of models where there is no base, in blocks of the tensor.

    Written are head and tail, [n, m]: the vectors before the first whole block and behind the last; and products,
    [n_blocks, n, n]. vectors: [n + 1, PRODUCT_BLOCK], memory. Returns 0 or NOT_CLEAN, as for `merge`.
    """
    n_models, n_head, n_tail = len(head), head.shape[1], tail.shape[1]
    at, tree, base = np.empty_like(given.at), np.empty(PRODUCT_BLOCK, dtype=np.float64), vectors[n_models]
    if n_head > 0:
        if not _read_part(given, 0, n_head, at, JUDGES):
            return NOT_CLEAN
        _load_vectors(_part(given, 0, n_head, at), 0, base[:n_head], head)
    behind = given.n_elements - n_tail
    for begin in range(n_head, given.n_elements, PART):
        n = min(PART, given.n_elements - begin)
        if not _read_part(given, begin, n, at, JUDGES):
            return NOT_CLEAN
        part = _part(given, begin, n, at)
        for first in range(0, n, PRODUCT_BLOCK):
            if begin + first == behind:
                _load_vectors(part, first, base[:n_tail], tail)
            else:
                _load_vectors(part, first, base, vectors[:n_models])
                _multiply_pairs(vectors[:n_models], tree, products[(begin + first - n_head) // PRODUCT_BLOCK])
    return i64(0)


@_called(types.UniTuple(types.int64, 2), _input, types.int64, types.int32, types.int64, _scratch)
def find_key(given, model, key, missing, scratch):
    """Return the index of the `missing`-th entry of a model's task vector that has the key, and 0.

    Or -1 and how many are missing behind the rows; or NOT_CLEAN and 0, as for `merge`.
    """
    at = np.empty_like(given.at)
    for begin in range(0, given.n_elements, PART):
        n = min(PART, given.n_elements - begin)
        if not _read_part(given, begin, n, at, JUDGES):
            return NOT_CLEAN, i64(0)
        index, missing = _find_key_of_part(_part(given, begin, n, at), model, key, missing, scratch)
        if index >= 0:
            return begin + index, missing
    return i64(-1), missing
