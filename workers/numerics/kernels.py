"""The fused kernels: from rows as files hold them to merged numbers, block by block in the processor's first cache.

Compiled by numba when this module is imported, or loaded from its cache; only numerics/fused.py does so. Everything
stays in this one file, long as it is: the cache does not notice a change in another. Loops are short and without
branches, one after the other over a block, because that is what becomes vector instructions; float64 sums use fused
multiply-add, as torch's do, so that both give the same bits. Nothing here reorders or approximates.
"""

import numpy as np
from llvmlite.ir import DoubleType, FloatType, IntType
from numba import njit, types
from numba.extending import intrinsic

from workers.fusion import BFLOAT16, FLOAT16, FLOAT32, NO_FILE, PART
from workers.numerics.programs import (
    BLOCK,
    EXP_SERIES,
    FURTHEST,
    IMPORTANT,
    LARGEST,
    LN_2_HIGH,
    LN_2_LOW,
    LOG2_E,
    MEAN,
    MEAN_OF_CHANGED,
    NEAR,
    NOT_CLEAN,
    PRODUCT_BLOCK,
    ROUNDS_TO_INTEGER,
    SMALLEST_POWER,
    SOME,
    SUM_OF_ALL,
    TANH_ABOVE,
    TANH_BELOW,
    Input,
    Program,
    Scratch,
    Windows,
)

SHORT = 48  # width of rows that are sorted by insertion
BUCKETS = 256  # of magnitudes
MANY = 64  # ranks of a row that are no longer counted one by one
JUDGES = True
GROUP = 32  # elements that are looked at together for keys within a window

f32, f64, i32, i64 = np.float32, np.float64, np.int32, np.int64
u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64
MAGNITUDE = u32(0x7FFF_FFFF)
SIGN = u32(0x8000_0000)
NOTHING = -0.0  # where sums begin: x added to it is x, whatever the sign of a zero
INFINITY = u32(0x7F80_0000)
ONE = u32(0x3F80_0000)
FINER = 26  # powers of two between the largest number of a block and the unit in which its magnitudes are summed
GATHERS_BITS = u64(0x0102_0408_1020_4080)  # times eight bytes of 0 or 1: they are the bits of the highest byte
LARGEST_FLOAT = float(np.finfo(np.float32).max)
BUCKET_BITS = i32(18)  # that do not tell magnitudes apart which lie in one bucket

# No references are counted (_nrt): whoever calls a kernel holds its arrays. So nothing is allocated here, and no array
# returned; slices cost nothing, and less is compiled, as without the wrappers that Python would call.
_options = {"nogil": True, "error_model": "numpy", "_nrt": False, "no_cfunc_wrapper": True}
_compiled = njit(no_cpython_wrapper=True, **_options)
_inlined = njit(inline="always", **_options)
_floats, _integers, _wide_rows = types.float64[::1], types.int64[::1], types.float32[:, ::1]
_input = types.NamedTuple(
    (
        types.uint8[::1], _integers, _integers, _integers, _integers, types.int64, types.int64, types.boolean,
        types.boolean, types.uint64[::1], _integers, types.float64[:, ::1], _integers,
    ), Input,
)  # fmt: skip
_program = types.NamedTuple(
    (
        types.boolean, types.int64, _floats, types.boolean, _floats, types.float64, _floats, types.float64,
        types.float32[::1], types.float64[:, ::1], types.int64[:, ::1], types.int64, types.float64, _floats,
        types.int64, types.boolean, types.float64, types.float64, types.float64,
    ), Program,
)  # fmt: skip
_windows = types.NamedTuple((_integers, types.int32[::1], types.int32[::1]), Windows)
_scratch = types.NamedTuple((types.float32[:, ::1], types.float64[:, ::1]), Scratch)
_pread = types.ExternalFunction("pread", types.int64(types.int32, types.voidptr, types.uint64, types.int64))


def _called(*signature):
    return njit([signature[0](*signature[1:])], cache=True, **_options)


@intrinsic
def fma(_typing, _a, _b, _c):
    """Return a · b + c, rounded once."""

    def generate(_context, builder, _signature, arguments):
        return builder.fma(*arguments)

    return types.float64(types.float64, types.float64, types.float64), generate


def _same_bits(source, target, of_target):
    @intrinsic
    def cast(_typing, _number):
        def generate(_context, builder, _signature, arguments):
            return builder.bitcast(arguments[0], of_target)

        return target(source), generate

    return cast


@intrinsic
def to_float(_typing, stored):
    """Return the float32 number that a bfloat16's 16 or a float32's 32 bits are."""

    def generate(_context, builder, _signature, arguments):
        bits = arguments[0]
        if stored == types.uint16:
            bits = builder.shl(builder.zext(bits, IntType(32)), IntType(32)(16))
        return builder.bitcast(bits, FloatType())

    return types.float32(stored), generate


as_float = _same_bits(types.uint32, types.float32, FloatType())
as_bits = _same_bits(types.float32, types.uint32, IntType(32))
as_double = _same_bits(types.uint64, types.float64, DoubleType())
as_wide_bits = _same_bits(types.float64, types.uint64, IntType(64))


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
    judges = judges and not given.is_judged
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
def _are_finite(given, begin, n):
    """Tell whether the elements of all rows are finite: where a task vector is not, it may also have overflowed."""
    n_finite = 0
    for number in range(len(given.at)):
        n_finite += _is_row_finite(given, number, begin, n)
    return n_finite == len(given.at)


@_compiled
def _is_row_finite(given, number, begin, n):
    item = 4 if given.kinds[number] == FLOAT32 else 2
    at = given.at[number] + item * begin
    return _is_finite(given.content[at : at + item * n], given.kinds[number])


@_compiled
def _part(given, begin, n, at):
    return Input(
        given.content, at, given.kinds, given.files, given.places, n, given.offset + begin, given.has_base,
        given.is_judged, given.keys, given.behinds, given.scales, given.at_part,
    )  # fmt: skip


@_inlined
def _halves(given, number, begin, n):
    at = given.at[number] + 2 * begin
    return given.content[at : at + 2 * n].view(np.uint16)


@_inlined
def _words(given, number, begin, n):
    at = given.at[number] + 4 * begin
    return given.content[at : at + 4 * n].view(np.uint32)


@_compiled
def _load(given, number, begin, row):
    """Read a row's elements from `begin` on as float32; number: of the row, the base's first."""
    kind, n = given.kinds[number], len(row)
    if kind == BFLOAT16:
        _widen(_halves(given, number, begin, n), row)
    elif kind == FLOAT32:
        _widen(_words(given, number, begin, n), row)
    else:
        _widen_float16(_halves(given, number, begin, n), row)


@_compiled
def _widen(stored, row):
    for j in range(len(row)):
        row[j] = to_float(stored[j])


@_compiled
def _widen_float16(half, row):
    bits = row.view(np.uint32)
    for j in range(len(row)):
        bits[j] = u32(u32(half[j] & u16(0x7FFF)) << u32(13))
    for j in range(len(row)):
        row[j] = f32(row[j] * f32(2.0**112))  # exact, also for subnormal numbers
    for j in range(len(row)):
        bits[j] = u32(bits[j] | u32(u32(half[j] & u16(0x8000)) << u32(16)))


@_compiled
def _load_delta(given, number, begin, base, row):
    """Read a row's elements from `begin` on, less the base; return the bits of the largest magnitude."""
    if given.kinds[number] == BFLOAT16:
        return _subtract(_halves(given, number, begin, len(row)), base, row)
    if given.kinds[number] == FLOAT32:
        return _subtract(_words(given, number, begin, len(row)), base, row)
    _load(given, number, begin, row)
    return _subtract(row.view(np.uint32), base, row)


@_compiled
def _subtract(stored, base, row):
    """Write stored numbers less the base to the row; return the bits of the largest magnitude."""
    largest = u32(0)
    for j in range(len(row)):
        delta = f32(to_float(stored[j]) - base[j])
        row[j] = delta
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
def _keep_draw(given, model, begin, row):
    """Drop of a model's row what its draws drop, if there are any, and scale the rest."""
    if len(given.keys) > 0:
        _keep_drawn(row, given.offset + begin, given.keys[model], given.behinds[model])
        if given.scales[model, 0] != 1.0:
            _divide(row, given.scales[model, 0])
        if given.scales[model, 1] != 1.0:
            _multiply(row, given.scales[model, 1])


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
# Ranks are in the order (magnitude ascending, column descending). An entry's draw leaves its fate open only between the
# smallest and the largest probability, and then mostly where its magnitude lies among few others tells enough.


@_compiled
def _keep_ranked(row, index, key, behinds, memory):
    """Drop of a row, whose first element has flat index `index`, what is not drawn by the rank's probability.

    behinds: [width], ascending: of the smallest magnitude first; memory: see `draw_ranked`.
    """
    draws, keys, some, counts, order = memory
    width, bits = len(row), row.view(np.int32)
    lowest, highest, n_open = behinds[0], behinds[width - 1], 0
    for j in range(width):
        draws[j] = _draw(index + j, key)
    for j in range(width):
        keys[j] = i32(bits[j] & i32(MAGNITUDE))
        row[j] = f32(row[j] * f32(draws[j] < highest))
    for j in range(width):
        some[u64(n_open)] = j
        n_open += i64(draws[j] >= lowest) & i64(draws[j] < highest)
    if width > SHORT and n_open > 0:
        n_open = _narrow(row, keys, draws, behinds, some[:n_open], counts)
    if n_open <= MANY:
        for i in range(n_open):
            row[some[i]] = f32(row[some[i]] * f32(draws[some[i]] < behinds[_rank_of(keys, some[i])]))
        return
    half = _rank(keys, order, counts)
    for rank in range(width):
        column = i64(order[half, rank] & u64(0xFFFF_FFFF))
        row[column] = f32(row[column] * f32(draws[column] < behinds[rank]))


@_compiled
def _narrow(row, keys, draws, behinds, some, counts):
    """Drop of some entries what is dropped wherever among the like they rank; leave at the front what is still open.

    Alike are magnitudes of one bucket, a 32nd of a power of two; in the last are all that are smaller.
    """
    width, n_open, largest = len(keys), 0, i32(0)
    for j in range(width):
        largest = max(largest, keys[j])
    first = i32(i32(largest >> BUCKET_BITS) - i32(BUCKETS - 1))
    starts = counts[: BUCKETS + 1]
    starts[:] = 0
    for j in range(width):
        starts[u64(i32(max(i32(keys[j] >> BUCKET_BITS) - first, i32(0)) + i32(1)))] += 1
    for bucket in range(BUCKETS):
        starts[bucket + 1] += starts[bucket]
    for i in range(len(some)):
        column = some[i]
        bucket = i64(max(i32(keys[column] >> BUCKET_BITS) - first, i32(0)))
        row[column] = f32(row[column] * f32(draws[column] < behinds[starts[bucket + 1] - 1]))
        some[u64(n_open)] = column
        n_open += i64(draws[column] >= behinds[starts[bucket]]) & i64(draws[column] < behinds[starts[bucket + 1] - 1])
    return n_open


@_compiled
def _divide_ranked(row, index, key, of_ranks, memory):
    """Do as `_keep_ranked`, and divide what is kept by its rank's divisor."""
    behinds, divisors = of_ranks
    _, keys, _, counts, order = memory
    bits = row.view(np.int32)
    for j in range(len(row)):
        keys[j] = i32(bits[j] & i32(MAGNITUDE))
    half = _rank(keys, order, counts)
    for rank in range(len(row)):
        column = i64(order[half, rank] & u64(0xFFFF_FFFF))
        kept = f32(row[column] * f32(_draw(index + column, key) < behinds[rank]))
        row[column] = f32(f64(kept) / divisors[rank])


@_compiled
def _rank_of(keys, column):
    """Return how many of a row's entries rank below one of them."""
    key, n_smaller, n_behind = keys[column], i32(0), i32(0)
    for j in range(len(keys)):
        n_smaller = i32(n_smaller + i32(keys[j] < key))
    for j in range(column + 1, len(keys)):
        n_behind = i32(n_behind + i32(keys[j] == key))
    return i64(n_smaller) + i64(n_behind)


@_compiled
def _rank(keys, order, counts):
    """Return which half of `order` holds the columns, in its lower 32 bits, by rank; above stand the keys.

    order: [2, width]; counts: memory, [1024]. A radix sort by the key's bytes; short rows are inserted one by one.
    """
    width = len(keys)
    for j in range(width):
        column = width - 1 - j
        order[0, j] = u64(u64(keys[column]) << u64(32)) | u64(column)
    if width <= SHORT:
        _insert(order[0])
        return 0
    counts[:] = 0
    for j in range(width):
        for digit in range(4):
            counts[256 * digit + i64(u64(order[0, j] >> u64(32 + 8 * digit)) & u64(255))] += 1
    half = 0
    for digit in range(4):
        of_digit = counts[256 * digit : 256 * digit + 256]
        if _move_by_digit(order[half], order[1 - half], of_digit, u64(32 + 8 * digit)):
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
def _sum_magnitudes(row, sums):
    """Add magnitudes as integers times powers of two, exactly.

    sums: [256], by exponent; see numerics/exact_sums.py.
    """
    for begin in range(0, len(row), BLOCK):
        some = row[begin : min(len(row), begin + BLOCK)]
        top = max(i64(_largest(some) >> u32(23)), i64(FINER + 1))
        if top == 255 or not _sum_in_units(some, top, sums):
            _sum_by_exponent(some, sums)


@_compiled
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


@_compiled
def _sum_by_exponent(row, sums):
    bits = row.view(np.uint32)
    for j in range(len(row)):
        exponent = u32(u32(bits[j] >> u32(23)) & u32(0xFF))
        sums[i64(exponent)] += i64(u32(u32(bits[j] & u32(0x7FFFFF)) | u32(u32(exponent > u32(0)) << u32(23))))


@_compiled
def _add_stored(total, stored, origin, weight):
    """Add a row's differences from the origin; return the bits of the largest magnitude."""
    largest = u32(0)
    for j in range(len(stored)):
        delta = f32(to_float(stored[j]) - origin[j])
        largest = max(largest, u32(as_bits(delta) & MAGNITUDE))
        total[j] = fma(f64(delta), weight, total[j])
    return largest


@_compiled
def _add_both_stored(total, one, other, origin, weight, other_weight):
    """Do as `_add_stored` for two rows, one after the other, while the sum goes through memory once."""
    largest = u32(0)
    for j in range(len(one)):
        delta, other_delta = f32(to_float(one[j]) - origin[j]), f32(to_float(other[j]) - origin[j])
        largest = max(largest, u32(as_bits(delta) & MAGNITUDE), u32(as_bits(other_delta) & MAGNITUDE))
        total[j] = fma(f64(other_delta), other_weight, fma(f64(delta), weight, total[j]))
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
        wide = as_wide_bits(total[j] + nudge)
        bits[j] = u32(u32(u32(wide >> u64(32)) & SIGN) | ONE)


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
def _add_both_agreeing(total, counts, one, other, elected, weight):
    """Do as `_add_agreeing` for two rows, one after the other, while sums go through memory once."""
    for j in range(len(one)):
        turned, other_turned = f32(one[j] * elected[j]), f32(other[j] * elected[j])
        turned = turned if turned > f32(0.0) else f32(0.0)
        other_turned = other_turned if other_turned > f32(0.0) else f32(0.0)
        total[j] = fma(f64(other_turned), weight, fma(f64(turned), weight, total[j]))
        counts[j] += f32(turned > f32(0.0)) + f32(other_turned > f32(0.0))


@_compiled
def _add_both(total, one, other, weight, other_weight):
    for j in range(len(one)):
        total[j] = fma(f64(other[j]), other_weight, fma(f64(one[j]), weight, total[j]))


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
    """Load a model's row, form the task vector, drop what is dropped; return the largest magnitude's bits."""
    largest, number = u32(0), model + i64(given.has_base)
    if program.of_deltas:
        largest = _load_delta(given, number, begin, base, row)
    else:
        _load(given, number, begin, row)
    _keep_draw(given, model, begin, row)
    if len(program.marks) > 0:
        _keep_band(row, given.offset + begin, program.marks[model], program.ends[model])
    return largest


@_compiled
def _sum(given, program, begin, scratch, total):
    """Sum the block's masked rows; return the largest magnitude's bits."""
    m, n, largest, model = len(total), len(program.weights), u32(0), 0
    is_whole = len(program.marks) == 0 and len(given.keys) == 0
    base, row, origin = scratch.rows[0, :m], scratch.rows[1, :m], scratch.rows[2, :m]
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
        else:
            seen = _load_masked(given, program, model, begin, base, row)
            _add(total, row, weights[model])
            model += 1
        largest = max(largest, seen)
    return largest


@_compiled
def _add_row(given, number, begin, origin, total, weight):
    m = len(total)
    if given.kinds[number] == BFLOAT16:
        return _add_stored(total, _halves(given, number, begin, m), origin, weight)
    return _add_stored(total, _words(given, number, begin, m), origin, weight)


@_compiled
def _add_rows(given, number, begin, origin, total, weight, next_weight):
    m, other = len(total), number + 1
    if given.kinds[number] == BFLOAT16:
        one, two = _halves(given, number, begin, m), _halves(given, other, begin, m)
        return _add_both_stored(total, one, two, origin, weight, next_weight)
    first, second = _words(given, number, begin, m), _words(given, other, begin, m)
    return _add_both_stored(total, first, second, origin, weight, next_weight)


@_compiled
def _sum_changed(given, program, begin, scratch, total):
    """Average the block's masked rows over those that are not zero; return the largest magnitude's bits."""
    m, largest = len(total), u32(0)
    base, row, counts, boosts = scratch.rows[0, :m], scratch.rows[1, :m], scratch.rows[2, :m], scratch.wide[1, :m]
    total[:] = 0.0
    counts[:] = f32(0.0)
    for model in range(len(program.weights)):
        largest = max(largest, _load_masked(given, program, model, begin, base, row))
        _add(total, row, program.weights[model])
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


@_compiled
def _pick_furthest(given, program, begin, scratch, total):
    """Take the entries of the largest magnitude, the last of equal ones; return that magnitude's bits."""
    m, largest = len(total), u32(0)
    base, row, furthest = scratch.rows[0, :m], scratch.rows[1, :m], scratch.rows[2, :m]
    for model in range(len(program.weights)):
        largest = max(largest, _load_masked(given, program, model, begin, base, row))
        if model == 0:
            for j in range(m):
                furthest[j] = row[j]
            continue
        for j in range(m):
            furthest[j] = row[j] if abs(row[j]) >= abs(furthest[j]) else furthest[j]
    for j in range(m):
        total[j] = f64(furthest[j])
    return largest


@_compiled
def _swap_near(given, program, begin, scratch, total):
    """Take the model's entries that are near the base's, move the others; return the bits of the largest distance."""
    m = len(total)
    base, row, near = scratch.rows[0, :m], scratch.rows[1, :m], scratch.rows[2, :m]
    _load(given, 1, begin, near)
    largest = _load_delta(given, 1, begin, base, row)
    for j in range(m):
        step = f64(row[j] > f32(0.0)) - f64(row[j] < f32(0.0))
        moved = fma(step, program.reach, f64(base[j]))
        total[j] = f64(near[j]) if abs(row[j]) <= f32(program.reach) else moved
    return largest


@_compiled
def _take_important(given, program, begin, scratch, total):
    """Take the model's entries that matter, else the base's; return 0: rows are judged before."""
    m = len(total)
    base, row, theirs = scratch.rows[0, :m], scratch.rows[1, :m], scratch.rows[2, :m]
    _load(given, 1, begin, theirs)
    _weigh(theirs, base, program.divergences, program.width, given.offset + begin, row)
    for j in range(m):
        total[j] = f64(theirs[j]) if f64(row[j]) >= program.threshold else f64(base[j])
    return u32(0)


@_compiled
def _weigh(theirs, ours, divergences, width, index, out):
    """Write the importance of changes; index: of the first one within its tensor."""
    n, begin = len(out), 0
    while begin < n:
        row = (index + begin) // width
        behind = min(n, (row + 1) * width - index)
        _weigh_row(theirs[begin:behind], ours[begin:behind], divergences[row], out[begin:behind])
        begin = behind


@_compiled
def _weigh_row(theirs, ours, divergence, out):
    for j in range(len(out)):
        weighed = abs(f64(theirs[j]) - f64(ours[j])) * divergence
        out[j] = f32(weighed if weighed < LARGEST_FLOAT else LARGEST_FLOAT)


@_compiled
def _vote(given, program, begin, scratch, total):
    """Sum the votes of the block's masked rows, and keep those; return the largest magnitude's bits."""
    m, n, votes, largest = len(total), len(program.votes), program.votes, u32(0)
    total[:] = NOTHING
    for model in range(n):
        row = scratch.rows[1 + model, :m]
        largest = max(largest, _load_masked(given, program, model, begin, scratch.rows[0, :m], row))
        if program.turns[model] != f32(1.0):
            _scale(row, program.turns[model])
        if model % 2 == 1:
            _add_both(total, scratch.rows[model, :m], row, votes[model - 1], votes[model])
        elif model + 1 == n:
            _add(total, row, votes[model])
    return largest


@_compiled
def _reduce_agreeing(program, scratch, total):
    """Replace the votes' sum by the disjoint merge of the rows that `_vote` has kept."""
    m = len(total)
    counts, elected = scratch.rows[len(scratch.rows) - 2, :m], scratch.rows[len(scratch.rows) - 1, :m]
    _elect(total, program.nudge, elected)
    total[:] = 0.0
    if program.reduction == LARGEST:
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


@_compiled
def _sum_agreeing(program, scratch, elected, total, counts):
    m, n, weight = len(total), len(program.weights), program.weights[0]
    counts[:] = f32(0.0)
    for model in range(1, n, 2):
        _add_both_agreeing(total, counts, scratch.rows[model, :m], scratch.rows[model + 1, :m], elected, weight)
    if n % 2 == 1:
        _add_agreeing(total, counts, scratch.rows[n, :m], elected, weight)


@_compiled
def _reduce_by_weights(program, scratch, elected, total):
    m, smallest = len(total), np.inf
    shares = scratch.wide[1, :m]
    shares[:] = 0.0
    for model in range(len(program.weights)):
        row, weight = scratch.rows[1 + model, :m], program.weights[model]
        smallest = weight if 0.0 < weight < smallest else smallest
        _keep_agreeing(row, elected)
        _add(total, row, weight)
        _add_ones(shares, row, weight)
    if program.reduction == MEAN:
        _turn_over_shares(total, elected, shares, smallest)
    else:
        _turn(total, elected)


@_inlined
def _reduce(given, program, begin, scratch, total):
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
    seen = _vote(given, program, begin, scratch, total)
    _reduce_agreeing(program, scratch, total)
    return seen


@_compiled
def _keep_needed(given, program, begin, scratch, total):
    """Drop what too few models need of what was merged: their task vectors are looked at as the files have them."""
    m = len(total)
    base, row, counts = scratch.rows[0, :m], scratch.rows[1, :m], scratch.rows[2, :m]
    counts[:] = f32(0.0)
    for model in range(len(program.weights)):
        weight = program.weights[model]
        if len(program.votes) > 0:
            weight = weight * f64(program.turns[model])
        _load_delta(given, model + 1, begin, base, row)
        for j in range(m):
            own = f64(row[j]) * weight
            counts[j] += f32(abs(own) > abs(total[j] - own) * program.threshold)
    for j in range(m):
        total[j] = total[j] if counts[j] >= f32(program.min_needing) else 0.0


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
    """Write -0.0 where the result is zero and the base is -0.0; return the bits of the largest magnitude."""
    bits, of_base, largest = row.view(np.uint32), base.view(np.uint32), u32(0)
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
def _write(row, place, out, to_bfloat16):
    if to_bfloat16:
        _round_to_bfloat16(row, out[2 * place : 2 * (place + len(row))].view(np.uint16))
    else:
        _copy(row, out[4 * place : 4 * (place + len(row))].view(np.float32))


@_compiled
def _round_to_bfloat16(row, out):
    bits = row.view(np.uint32)
    for j in range(len(row)):
        out[j] = u16(u32(u32(bits[j] + u32(0x7FFF)) + u32(u32(bits[j] >> u32(16)) & u32(1))) >> u32(16))


@_compiled
def _copy(row, out):
    for j in range(len(row)):
        out[j] = row[j]


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
def _find_between(keys, low, high, found, n_found):
    """Append the keys within a window to what was found; return how many are found now."""
    span, n_grouped = u32(high - low), len(keys) // GROUP * GROUP
    for begin in range(0, n_grouped, GROUP):
        hit = i32(0)
        for j in range(GROUP):  # a constant, so that it is a vector instruction or two; unsigned: no index below zero
            hit = i32(hit | i32(u32(keys[u64(begin) + u64(j)] - low) <= span))
        if hit != 0:
            n_found = _append_between(keys, begin, begin + GROUP, (low, span), found, n_found)
    return _append_between(keys, n_grouped, len(keys), (low, span), found, n_found)


@_compiled
def _append_between(keys, begin, behind, window, found, n_found):
    low, span = window
    for j in range(begin, behind):
        found[u64(n_found)] = keys[u64(j)]
        n_found += i64(u32(keys[u64(j)] - low) <= span)
    return n_found


@_compiled
def _load_whole_vector(given, model, begin, base, row):
    if given.has_base:
        _load_delta(given, model + 1, begin, base, row)
    else:
        _load(given, model, begin, row)


@_compiled
def _load_vector(given, model, begin, base, row):
    """Read a model's elements, or its task vector's where there is a base, as its draws leave them."""
    _load_whole_vector(given, model, begin, base, row)
    _keep_draw(given, model, begin, row)


@_compiled
def _load_keys(given, model, begin, base, row):
    """Read the bits of a model's magnitudes, or of its task vector's, into the row, as int32."""
    keys, number, kind = row.view(np.int32), model + i64(given.has_base), given.kinds[model + i64(given.has_base)]
    if given.has_base and len(given.keys) == 0 and kind == BFLOAT16:
        _subtract_to_keys(_halves(given, number, begin, len(row)), base, keys)
    elif given.has_base and len(given.keys) == 0 and kind == FLOAT32:
        _subtract_to_keys(_words(given, number, begin, len(row)), base, keys)
    else:
        _load_vector(given, model, begin, base, row)
        for j in range(len(row)):
            keys[j] = i32(keys[j] & i32(MAGNITUDE))


@_compiled
def _subtract_to_keys(stored, base, keys):
    for j in range(len(keys)):
        keys[j] = i32(as_bits(f32(to_float(stored[j]) - base[j])) & MAGNITUDE)


# --- what tasks keep of what they share -----------------------------------------------------------------------------


@_compiled
def _share_outermost(given, begin, n, scratch, out):
    """Write the element of n models that lies farthest from the base on the side of the sum of task vectors.

    Return the bits of the largest task vector. Left in the memory are these and, behind them, the side: -1, 1, or 0
    where they balance, and the base is written.
    """
    m, largest = len(out), u32(0)
    base, total, side, row = scratch.rows[0, :m], scratch.wide[0, :m], scratch.rows[n + 1, :m], scratch.rows[n + 2, :m]
    total[:] = NOTHING
    for model in range(n):
        delta = scratch.rows[1 + model, :m]
        largest = max(largest, _load_delta(given, model + 1, begin, base, delta))
        if model % 2 == 1:
            _add_both(total, scratch.rows[model, :m], delta, 1.0, 1.0)
        elif model + 1 == n:
            _add(total, delta, 1.0)
    for j in range(m):
        side[j] = f32(total[j] > 0.0) - f32(total[j] < 0.0)
        out[j] = f32(base[j] * side[j])
    for model in range(n):
        _load(given, model + 1, begin, row)
        for j in range(m):
            turned = f32(row[j] * side[j])
            out[j] = turned if turned > out[j] else out[j]
    for j in range(m):
        out[j] = f32(out[j] * side[j]) if side[j] != f32(0.0) else base[j]
    return largest


@_compiled
def _share_sum(given, begin, n, scratch, out):
    """Write the base plus the sum of n task vectors, which is left in the memory beside the models.

    Return the bits of the largest magnitude written: it is not finite where a model is not.
    """
    m = len(out)
    base, total = scratch.rows[0, :m], scratch.wide[0, :m]
    total[:] = NOTHING
    for model in range(n):
        row = scratch.rows[1 + model, :m]
        _load(given, model + 1, begin, row)
        for j in range(m):
            total[j] += f64(row[j]) - f64(base[j])
    for j in range(m):
        out[j] = f32(total[j] + f64(base[j]))
    return _largest(out)


@_compiled
def _keep_beside(delta, side, kept):
    for j in range(len(delta)):
        kept[j] = u8(f32(delta[j] * side[j]) > f32(0.0))


@_compiled
def _keep_outweighing(row, base, total, threshold, kept):
    for j in range(len(row)):
        own = f64(row[j]) - f64(base[j])
        kept[j] = u8(abs(own) > abs(total[j] - own) * threshold)


@_compiled
def _pack(kept, n, out):
    """Pack bytes of 0 or 1 into bits, the first one the lowest; the last byte is filled up with zeros."""
    for j in range(n, 8 * len(out)):
        kept[j] = u8(0)
    eights = kept.view(np.uint64)
    for j in range(len(out)):
        out[j] = u8(u64(eights[j] * GATHERS_BITS) >> u64(56))


@_compiled
def _measure(delta, shared, kept, sums):
    """Add |task vector|, and |shared one| where it is kept, to the sums, [2, 256]. delta: it is overwritten."""
    _sum_magnitudes(delta, sums[0])
    for j in range(len(delta)):
        delta[j] = f32(shared[j] * f32(kept[j]))
    _sum_magnitudes(delta, sums[1])


# --- blocks, one after the other ------------------------------------------------------------------------------------


def _by_block(visit):
    """Make of a function that sees one block of all rows one that sees them block by block.

    It is given a part of the rows, which lies in the second cache; the index of that part's first element; the range of
    the block within the part; memory, whose first row is the base's block; and the state. The largest number that it
    returns is returned, or NOT_CLEAN: for rows that cannot be read or are not finite (as far as `judges` says).
    """
    visit = _inlined(visit)

    @_compiled
    def visit_all(given, judges, scratch, state):
        largest, at = i64(0), given.at_part
        for first in range(0, given.n_elements, PART):
            n = min(PART, given.n_elements - first)
            if not _read_part(given, first, n, at, judges):
                return NOT_CLEAN
            part = _part(given, first, n, at)
            for begin in range(0, n, BLOCK):
                behind = min(n, begin + BLOCK)
                if given.has_base:
                    _load(part, 0, begin, scratch.rows[0, : behind - begin])
                largest = max(largest, visit(part, first, begin, behind, scratch, state))
        return largest

    return visit_all


@_by_block
def _merge_by_block(given, first, begin, behind, scratch, state):
    """Merge; return the bits of the largest magnitude, or NOT_CLEAN where a task vector overflows."""
    program, out, to_bfloat16 = state
    m = behind - begin
    base, row, total = scratch.rows[0, :m], scratch.rows[1, :m], scratch.wide[0, :m]
    if _reduce(given, program, begin, scratch, total) >= INFINITY:
        return NOT_CLEAN
    if program.min_needing > 0:
        _keep_needed(given, program, begin, scratch, total)
    _join_base(program, total, base, row)
    largest = _keep_negative_zeros(row, base) if given.has_base else _largest(row)
    _write(row, first + begin, out, to_bfloat16)
    return i64(largest)


@_by_block
def _mask_by_block(given, first, begin, behind, scratch, state):
    """Merge, mask and measure; return the bits of the largest magnitude, also of task vectors where sides are taken."""
    threshold, out, to_bfloat16, masks, sums = state
    m, n, place = behind - begin, len(masks), first + begin
    base, kept = scratch.rows[0, :m], scratch.wide[1].view(np.uint8)
    total, side, shared = scratch.wide[0, :m], scratch.rows[n + 1, :m], scratch.rows[n + 3, :m]
    takes_sides = threshold < 0.0
    if takes_sides:
        largest = _share_outermost(given, begin, n, scratch, shared)
    else:
        largest = _share_sum(given, begin, n, scratch, shared)
    largest = max(largest, _keep_negative_zeros(shared, base))
    _write(shared, place, out, to_bfloat16)
    for j in range(m):
        shared[j] = f32(shared[j] - base[j])
    for model in range(n):
        row = scratch.rows[1 + model, :m]
        if takes_sides:
            _keep_beside(row, side, kept[:m])
        else:
            _keep_outweighing(row, base, total, threshold, kept[:m])
        _pack(kept, m, masks[model, place // 8 : (place + m + 7) // 8])
        if len(sums) > 0:
            _measure(row, shared, kept, sums[model])
    return i64(largest)


@_by_block
def _count_signs_by_block(given, _first, begin, behind, scratch, state):
    program, balance = state
    total = scratch.wide[0, : behind - begin]
    if _vote(given, program, begin, scratch, total) >= INFINITY and not _are_finite(given, begin, behind - begin):
        return NOT_CLEAN
    balance[0] += _balance(total)
    return i64(0)


@_by_block
def _count_keys_by_block(given, _first, begin, behind, scratch, state):
    windows, found, counts = state
    m, is_finite = behind - begin, True
    base, row = scratch.rows[0, :m], scratch.rows[1, :m]
    keys = row.view(np.int32)
    for model in range(len(windows.of_model) - 1):
        if windows.of_model[model] == windows.of_model[model + 1]:
            is_finite = is_finite and _is_row_finite(given, model + i64(given.has_base), begin, m)
            continue
        _load_keys(given, model, begin, base, row)
        is_finite = is_finite and (_largest(row) < INFINITY or _are_finite(given, begin, m))
        for window in range(windows.of_model[model], windows.of_model[model + 1]):
            low, high = windows.lows[window], windows.highs[window]
            counts[window, 0] += _count_above(keys, high)
            counts[window, 1] = _find_between(keys, low, high, found[window], counts[window, 1])
    return i64(0) if is_finite else NOT_CLEAN


@_by_block
def _sum_norms_by_block(given, _first, begin, behind, scratch, state):
    sums = state[0]
    base, row = scratch.rows[0, : behind - begin], scratch.rows[1, : behind - begin]
    for model in range(len(given.keys)):
        _load_whole_vector(given, model, begin, base, row)
        _sum_magnitudes(row, sums[0, model])
        _keep_draw(given, model, begin, row)
        _sum_magnitudes(row, sums[1, model])
    return i64(0)


@_by_block
def _count_overlaps_by_block(given, _first, begin, behind, scratch, state):
    threshold, counts = state
    m = behind - begin
    base, row, n_changing = scratch.rows[0, :m], scratch.rows[1, :m], scratch.rows[2, :m]
    n_changing[:] = f32(0.0)
    for model in range(len(counts)):
        changed = scratch.rows[3 + model, :m]
        _load_vector(given, model, begin, base, row)
        for j in range(m):
            changed[j] = f32(abs(row[j]) > threshold)
            n_changing[j] += changed[j]
    for model in range(len(counts)):
        changed, n_shared, n_unique = scratch.rows[3 + model, :m], i32(0), i32(0)
        for j in range(m):
            n_shared = i32(n_shared + i32(changed[j] * n_changing[j] > f32(1.0)))
            n_unique = i32(n_unique + i32(changed[j] * n_changing[j] == f32(1.0)))
        counts[model, 0] += i64(n_shared)
        counts[model, 1] += i64(n_unique)
    return i64(0)


@_by_block
def _spread_by_block(given, first, begin, behind, scratch, state):
    variances = state[0][first + begin : first + behind]
    n, m = len(given.kinds) - i64(given.has_base), behind - begin
    base, mean = scratch.rows[0, :m], scratch.wide[0, :m]
    mean[:] = NOTHING
    for model in range(n):
        row = scratch.rows[1 + model, :m]
        _load_vector(given, model, begin, base, row)
        _add(mean, row, 1.0)
    for j in range(m):
        mean[j] = mean[j] / n
    variances[:] = 0.0
    for model in range(n):
        row = scratch.rows[1 + model, :m]
        for j in range(m):
            apart = f64(row[j]) - mean[j]
            variances[j] += apart * apart
    return i64(0)


# --- inner products -------------------------------------------------------------------------------------------------


@_compiled
def _multiply_halves(one, other, half, tree):
    far, other_far = one[half:], other[half:]
    n_far = len(far)
    for j in range(n_far):
        tree[j] = fma(f64(far[j]), f64(other_far[j]), f64(one[j]) * f64(other[j]))
    for j in range(n_far, min(half, len(one))):
        tree[j] = f64(one[j]) * f64(other[j])


@_compiled
def _multiply_quarters(one, other, tree):
    """Do two halvings at a time: half as much goes through memory."""
    n = len(one) // 4
    one_0, one_1, one_2, one_3 = one[:n], one[n : 2 * n], one[2 * n : 3 * n], one[3 * n :]
    other_0, other_1, other_2, other_3 = other[:n], other[n : 2 * n], other[2 * n : 3 * n], other[3 * n :]
    for j in range(n):
        low = fma(f64(one_2[j]), f64(other_2[j]), f64(one_0[j]) * f64(other_0[j]))
        tree[j] = low + fma(f64(one_3[j]), f64(other_3[j]), f64(one_1[j]) * f64(other_1[j]))
    return n


@_compiled
def _multiply_sixths(one, other, tree):
    """Do three halvings at a time, of three times a power of two, as widths often are."""
    n = len(one) // 6
    one_0, one_1, one_2, one_3, one_4, one_5 = (
        one[:n], one[n : 2 * n], one[2 * n : 3 * n], one[3 * n : 4 * n], one[4 * n : 5 * n], one[5 * n :],
    )  # fmt: skip
    other_0, other_1, other_2, other_3, other_4, other_5 = (
        other[:n], other[n : 2 * n], other[2 * n : 3 * n], other[3 * n : 4 * n], other[4 * n : 5 * n], other[5 * n :],
    )  # fmt: skip
    for j in range(n):
        low = fma(f64(one_4[j]), f64(other_4[j]), f64(one_0[j]) * f64(other_0[j])) + f64(one_2[j]) * f64(other_2[j])
        high = fma(f64(one_5[j]), f64(other_5[j]), f64(one_1[j]) * f64(other_1[j])) + f64(one_3[j]) * f64(other_3[j])
        tree[j] = low + high
    return n


@_compiled
def _add_quarters(tree):
    n = len(tree) // 4
    tree_0, tree_1, tree_2, tree_3 = tree[:n], tree[n : 2 * n], tree[2 * n : 3 * n], tree[3 * n :]
    for j in range(n):
        tree_0[j] = (tree_0[j] + tree_2[j]) + (tree_1[j] + tree_3[j])
    return n


@_compiled
def _inner_product(one, other, tree):
    """Sum products, which float64 holds exactly, halving by halving, as precision.inner_products does."""
    m, half = len(one), 1
    while 2 * half < m:
        half = 2 * half
    if 2 * half == m and m >= 4:
        half = _multiply_quarters(one, other, tree)
    elif 3 * half == 2 * m and m >= 6:
        half = _multiply_sixths(one, other, tree)
    else:
        _multiply_halves(one, other, half, tree)
    while half >= 4:
        half = _add_quarters(tree[:half])
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
        _load_vector(given, model, begin, base, vectors[model])


@_compiled
def _multiply_pairs(vectors, tree, out):
    """Write the inner products of all pairs of n vectors, [n, m], to `out`, [n, n]."""
    for first in range(len(vectors)):
        for second in range(first, len(vectors)):
            product = _inner_product(vectors[first], vectors[second], tree)
            out[first, second] = product
            out[second, first] = product


# --- importance: numerics/importance.py in the same steps -------------------------------------------------------------


@_compiled
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


@_compiled
def _raise_to(row, highest, powers):
    for j in range(len(row)):
        powers[j] = _exp(f64(row[j]) - highest)


@_compiled
def _sum_by_halving(tree):
    m, half = len(tree), 1
    while 2 * half < m:
        half = 2 * half
    while half > 0:
        for j in range(min(half, m - half)):
            tree[j] += tree[half + j]
        m, half = half, half // 2
    return tree[0]


@_compiled
def _highest(row):
    """Return the largest number, by bits that are turned to be ordered as the numbers are."""
    bits, highest = row.view(np.int32), i32(-0x8000_0000)
    for j in range(len(row)):
        highest = max(highest, i32(bits[j] ^ i32(i32(bits[j] >> i32(31)) & i32(MAGNITUDE))))
    return as_float(u32(highest ^ i32(i32(highest >> i32(31)) & i32(MAGNITUDE))))


@_compiled
def _diverge(theirs, ours, trees):
    """Return how far one row's softmax is from another's: the divergence of numerics/importance.py."""
    highest, our_highest = f64(_highest(theirs)), f64(_highest(ours))
    powers, our_powers, moments = trees[0], trees[1], trees[2]
    _raise_to(theirs, highest, powers)
    _raise_to(ours, our_highest, our_powers)
    for j in range(len(theirs)):
        moments[j] = powers[j] * ((f64(theirs[j]) - highest) - (f64(ours[j]) - our_highest))
    total, our_total = _sum_by_halving(powers), _sum_by_halving(our_powers)
    return max(0.0, _sum_by_halving(moments) / total - (np.log(total) - np.log(our_total)))


# --- competition: numerics/competition.py in the same steps -----------------------------------------------------------


@_compiled
def _tanh_near_0(x):
    square = x * x
    above = ((TANH_ABOVE[0] * square + TANH_ABOVE[1]) * square + TANH_ABOVE[2]) * square + TANH_ABOVE[3]
    below = ((TANH_BELOW[0] * square + TANH_BELOW[1]) * square + TANH_BELOW[2]) * square + TANH_BELOW[3]
    return x * above / (below * square + TANH_BELOW[4])


@_compiled
def _tanh(x):
    power = _exp(-2.0 * abs(x))
    return _tanh_near_0(x) if abs(x) <= 1.0 else np.copysign((1.0 - power) / (1.0 + power), x)


@_compiled
def _rescale_signed(row, low, high, values):
    """Write where magnitudes lie between bounds, 0 to 1, with the signs of the entries; 0 if the bounds are one."""
    span = high - low
    for j in range(len(row)):
        sign = f64(row[j] > f32(0.0)) - f64(row[j] < f32(0.0))
        values[j] = sign * ((min(max(f64(abs(row[j])), low), high) - low) / span) if span > 0.0 else 0.0


@_compiled
def _add_agreement(one, other, total, other_total):
    for j in range(len(one)):
        agreement = _tanh_near_0(one[j] * other[j])
        total[j] += agreement
        other_total[j] += agreement


@_compiled
def _add_own_agreement(one, total):
    for j in range(len(one)):
        total[j] += _tanh_near_0(one[j] * one[j])


@_compiled
def _agree_with_sum(row, sums, total):
    for j in range(len(row)):
        total[j] = _tanh(f64(row[j]) * sums[j])


@_compiled
def _weigh_agreement(strengths, total, n, divisor, out):
    for j in range(len(out)):
        out[j] = f32(_exp(n * (strengths[j] * strengths[j] - 1.0)) * (total[j] / divisor))


# --- what is called -----------------------------------------------------------------------------------------------
# What is called with rows returns NOT_CLEAN where they cannot be read or are not finite; else 0, if nothing is said.


@_called(types.int64, _input, _program, _scratch, types.uint8[::1], types.boolean)
def merge(given, program, scratch, out, to_bfloat16):
    """Merge into `out`; return the bits of the largest magnitude; not clean are task vectors that overflow, too.

    Rows of which nothing is dropped are judged by their sum: it is not finite where one of them is not.
    """
    is_judged = program.of_deltas or (program.reduction == SUM_OF_ALL and program.joins_base == given.has_base)
    return _merge_by_block(given, not is_judged, scratch, (program, out, to_bfloat16))


@_called(
    types.int64, _input, types.float64, _scratch, types.uint8[::1], types.boolean, types.uint8[:, ::1],
    types.int64[:, :, ::1],
)  # fmt: skip
def mask(given, threshold, scratch, out, to_bfloat16, masks, sums):
    """Merge what all tasks share into `out`, and mask it for each; return the bits of the largest magnitude.

    threshold: below 0, who lies on the side of the sum keeps an element. masks: [n, bytes]; sums: [n, 2, 256], or of
    no models where nothing is measured. Measured are task vectors in float32; the threshold is for those in float64.
    """
    return _mask_by_block(given, not JUDGES, scratch, (threshold, out, to_bfloat16, masks, sums))


@_called(types.int64, _input, _program, _scratch, _integers)
def count_signs(given, program, scratch, balance):
    """Write to `balance`, [1], how many more elements elect 1 than -1; those whose votes balance count for neither."""
    balance[:] = 0
    return _count_signs_by_block(given, not program.of_deltas, scratch, (program, balance))


@_called(types.int64, _input, _windows, _scratch, types.int32[:, ::1], types.int64[:, ::1])
def count_keys(given, windows, scratch, found, counts):
    """Write to `counts` how many keys lie above each window and how many within, to `found` those within.

    found: [n_windows, n_elements]; counts: [n_windows, 2].
    """
    counts[:] = 0
    return _count_keys_by_block(given, not JUDGES, scratch, (windows, found, counts))  # judged by their keys


@_called(types.int64, _input, _scratch, types.int64[:, :, ::1])
def sum_norms(given, scratch, sums):
    """Write the sums of each task vector's magnitudes to `sums`, as its draws find and as they leave them.

    sums: [2, n_models, 256], by exponent.
    """
    sums[:] = 0
    return _sum_norms_by_block(given, JUDGES, scratch, (sums,))


@_called(types.int64, _input, _scratch, _floats)
def spread(given, scratch, out):
    """Write the variance of the task vectors over the models, entry by entry. scratch: of as many models."""
    return _spread_by_block(given, JUDGES, scratch, (out,))


@_called(types.int64, _input, types.float32, _scratch, types.int64[:, ::1])
def count_overlaps(given, threshold, scratch, counts):
    """Write to `counts`, [n_models, 2], how many entries above the threshold a model shares, and how many it does not.

    scratch: of as many models.
    """
    counts[:] = 0
    return _count_overlaps_by_block(given, JUDGES, scratch, (threshold, counts))


@_called(types.void, types.float32[::1], types.int64[::1])
def sum_magnitudes(numbers, sums):
    """Add the sum of magnitudes to `sums`, [256], by exponent."""
    _sum_magnitudes(numbers, sums)


@_called(types.void, types.float32[::1], types.int64, types.uint64, types.int64, types.float64)
def draw(vector, index, key, behind, divisor):
    """Drop, in place, what is not drawn, and divide the rest; index: flat, of the first element."""
    _keep_drawn(vector, index, key, behind)
    if divisor != 1.0:
        _divide(vector, divisor)


@_called(
    types.void, _wide_rows, _wide_rows, types.int64, types.uint64, _integers, _floats, types.float64,
    types.int64[:, ::1], types.int32[::1], _integers, types.uint64[:, ::1],
)  # fmt: skip
def draw_ranked(rows, out, index, key, behinds, divisors, factor, words, keys, counts, order):
    """Write rows to `out` without what is not drawn by its rank within its row; index: flat, of the first element.

    The rest is divided by its rank's divisor, if there are any, then multiplied by the factor, each time rounded.
    behinds: [width], divisors: [width] or empty, the smallest magnitude's first. Memory: words and order, [2, width];
    keys, [width]; counts, [1024].
    """
    width, memory = rows.shape[1], (words[0], keys, words[1], counts, order)
    for i in range(len(rows)):
        row, stored = out[i], rows[i]
        for j in range(width):
            row[j] = stored[j]
        if len(divisors) == 0:
            _keep_ranked(row, index + i * width, key, behinds, memory)
        else:
            _divide_ranked(row, index + i * width, key, (behinds, divisors), memory)
        if factor != 1.0:
            _multiply(row, factor)


@_called(types.void, _wide_rows, types.float64[:, ::1], types.boolean, types.float64[:, ::1], _wide_rows)
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


@_called(types.void, _wide_rows, types.float32[:, :, ::1], types.float64[:, ::1], _floats, _wide_rows)
def combine_rows(base, finetuned, shares, total, out):
    """Write each row's shares of the models, [n, rows], and the rest of the base, if it has any rows, added up.

    total: [width], memory.
    """
    n, n_rows, width = finetuned.shape
    for i in range(n_rows):
        total[:] = 0.0
        rest = 1.0
        for model in range(n):
            row, share = finetuned[model, i], shares[model, i]
            rest -= share
            for j in range(width):
                total[j] = total[j] + share * f64(row[j])
        if len(base) > 0:
            for j in range(width):
                total[j] = total[j] + rest * f64(base[i, j])
        for j in range(width):
            out[i, j] = f32(total[j])


@_called(types.void, _wide_rows, types.float32[:, :, ::1], _wide_rows, _floats, types.float64[:, :, ::1])
def row_products(base, finetuned, vectors, tree, out):
    """Write the inner products of all pairs of rows of n task vectors, [n, rows, width], to `out`, [rows, n, n].

    vectors: [n, width], tree: [width], memory.
    """
    n, n_rows, width = finetuned.shape
    for i in range(n_rows):
        for model in range(n):
            row = finetuned[model, i]
            for j in range(width):
                vectors[model, j] = f32(row[j] - base[i, j])
        _multiply_pairs(vectors, tree, out[i])


@_called(types.void, types.float32[:, :, ::1], _floats, types.float64[:, :, ::1])
def inner_products(vectors, tree, out):
    """Write the inner products of all pairs of n vectors, [n, batch, m] with m > 0, to `out`, [batch, n, n].

    tree: [m], memory.
    """
    for index in range(vectors.shape[1]):
        _multiply_pairs(vectors[:, index], tree, out[index])


@_called(types.int64, _input, _wide_rows, _floats, _wide_rows, _wide_rows, types.float64[:, :, ::1])
def multiply_blocks(given, vectors, tree, head, tail, products):
    """Multiply all pairs of task vectors, or of models where there is no base, in blocks of the tensor.

    Written are head and tail, [n, m]: the vectors before the first whole block and behind the last; and products,
    [n_blocks, n, n]. vectors: [n + 1, PRODUCT_BLOCK], tree: [PRODUCT_BLOCK], memory.
    """
    n_models, n_head, n_tail = len(head), head.shape[1], tail.shape[1]
    at, base = given.at_part, vectors[n_models]
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


@_called(types.void, _wide_rows, _wide_rows, types.float64[:, ::1], _floats)
def diverge(finetuned, base, trees, out):
    """Write the divergence of every row, [rows]; see numerics/importance.py. trees: [3, width], memory."""
    for i in range(len(base)):
        out[i] = _diverge(finetuned[i], base[i], trees)


@_called(types.void, types.float32[::1], types.float32[::1], _floats, types.int64, types.int64, types.float32[::1])
def weigh(finetuned, base, divergences, width, index, out):
    """Write the importance of a run of changes, [m]; see numerics/importance.py. index: of the first one in the tensor.

    divergences: of the tensor's rows, of this width.
    """
    _weigh(finetuned, base, divergences, width, index, out)
