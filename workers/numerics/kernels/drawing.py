"""What chance keeps: draws by position, and by an entry's rank within its row.

Ranks are in the order (magnitude ascending, column descending). An entry's draw leaves its fate open only between the
smallest and the largest probability, and then mostly where its magnitude lies among few others tells enough.
"""

import numpy as np
from numba import types

from workers.numerics.kernels.bits import MAGNITUDE, f32, f64, i32, i64, u64
from workers.numerics.kernels.compiling import FLOATS, INTEGERS, called, compiled, inlined
from workers.numerics.programs import DIGITS

SHORT = 48  # width of rows that are sorted by insertion
BUCKETS = 256  # of magnitudes
MANY = 64  # ranks of a row that are no longer counted one by one
BUCKET_BITS = i32(18)  # that do not tell magnitudes apart which lie in one bucket


@compiled
def draw_at(index, key):
    state = u64(u64(index + 1) * u64(0x9E3779B97F4A7C15)) + key
    state = u64(state ^ (state >> u64(30))) * u64(0xBF58476D1CE4E5B9)
    state = u64(state ^ (state >> u64(27))) * u64(0x94D049BB133111EB)
    return i64(u64(state ^ (state >> u64(31))) >> u64(11))


@compiled
def _keep_drawn(row, index, key, behind):
    for j in range(len(row)):
        row[j] = f32(row[j] * f32(draw_at(index + j, key) < behind))


@compiled
def keep_draw(given, model, begin, row):
    """Drop of a model's row what its draws drop, if there are any, and scale the rest."""
    if len(given.keys) > 0:
        of_ranks = given.behinds[model], given.divisors[model]
        _keep(row, given.offset + begin, given.keys[model], of_ranks, given.factors[model], given.ranking)


@compiled
def _keep(row, index, key, of_ranks, factor, memory):
    """Drop what is not drawn, scale the rest.

    of_ranks: for each rank within a row of the tensor, or for all alike, the first draw that is not kept and a divisor,
    both ascending. The row is any run then, else whole rows. index: flat, of the first element; memory: see Input.
    """
    behinds, divisors = of_ranks
    width = len(behinds)
    if width == 1:
        _keep_drawn(row, index, key, behinds[0])
        if divisors[0] != 1.0:
            _divide(row, divisors[0])
    elif divisors[0] == 1.0:
        for begin in range(0, len(row), width):
            _keep_ranked(row[begin : begin + width], index + begin, key, behinds, memory)
    else:
        for begin in range(0, len(row), width):
            _divide_ranked(row[begin : begin + width], index + begin, key, of_ranks, memory)
    if factor != 1.0:
        _multiply(row, factor)


@inlined
def _memory(ranking, width):
    """Return room for a row's draws, keys and columns, for counts of digits, and two orders."""
    keys, counts = ranking[2].view(np.int32)[:width], ranking[3, :DIGITS]
    return ranking[0, :width], keys, ranking[1], counts, ranking[4].view(np.uint64), ranking[5].view(np.uint64)


@compiled
def _divide(row, divisor):
    for j in range(len(row)):
        row[j] = f32(f64(row[j]) / divisor)


@compiled
def _multiply(row, factor):
    for j in range(len(row)):
        row[j] = f32(f64(row[j]) * factor)


@compiled
def _keep_ranked(row, index, key, behinds, memory):
    """Drop of a row, whose first element has flat index `index`, what is not drawn by the rank's probability.

    behinds: [width], ascending: of the smallest magnitude first.
    """
    draws, keys, some, counts, one, other = _memory(memory, len(row))
    width, bits = len(row), row.view(np.int32)
    lowest, highest, n_open = behinds[0], behinds[width - 1], 0
    for j in range(width):
        draws[j] = draw_at(index + j, key)
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
    order = one if _rank(keys, one, other, counts) else other
    for rank in range(width):
        column = i64(order[rank] & u64(0xFFFF_FFFF))
        row[column] = f32(row[column] * f32(draws[column] < behinds[rank]))


@compiled
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


@compiled
def _divide_ranked(row, index, key, of_ranks, memory):
    """Do as `_keep_ranked`, and divide what is kept by its rank's divisor."""
    behinds, divisors = of_ranks
    _, keys, _, counts, one, other = _memory(memory, len(row))
    bits = row.view(np.int32)
    for j in range(len(row)):
        keys[j] = i32(bits[j] & i32(MAGNITUDE))
    order = one if _rank(keys, one, other, counts) else other
    for rank in range(len(row)):
        column = i64(order[rank] & u64(0xFFFF_FFFF))
        kept = f32(row[column] * f32(draw_at(index + column, key) < behinds[rank]))
        row[column] = f32(f64(kept) / divisors[rank])


@compiled
def _rank_of(keys, column):
    """Return how many of a row's entries rank below one of them."""
    key, n_smaller, n_behind = keys[column], i32(0), i32(0)
    for j in range(len(keys)):
        n_smaller = i32(n_smaller + i32(keys[j] < key))
    for j in range(column + 1, len(keys)):
        n_behind = i32(n_behind + i32(keys[j] == key))
    return i64(n_smaller) + i64(n_behind)


@compiled
def _rank(keys, one, other, counts):
    """Write the columns by rank, in the lower 32 bits below their keys, and tell whether `one` holds them, or `other`.

    counts: memory, [DIGITS]. A radix sort by the key's bytes; short rows are inserted one by one.
    """
    width = len(keys)
    for j in range(width):
        column = width - 1 - j
        one[j] = u64(u64(keys[column]) << u64(32)) | u64(column)
    if width <= SHORT:
        _insert(one[:width])
        return True
    counts[:] = 0
    for j in range(width):
        for digit in range(4):
            counts[256 * digit + i64(u64(one[j] >> u64(32 + 8 * digit)) & u64(255))] += 1
    is_in_one = True
    for digit in range(4):
        source, target = (one, other) if is_in_one else (other, one)
        if _move_by_digit(source[:width], target, counts[256 * digit : 256 * digit + 256], u64(32 + 8 * digit)):
            is_in_one = not is_in_one
    return is_in_one


@compiled
def _insert(order):
    for j in range(1, len(order)):
        entry, i = order[j], j
        while i > 0 and u64(order[i - 1] >> u64(32)) > u64(entry >> u64(32)):
            order[i] = order[i - 1]
            i -= 1
        order[i] = entry


@compiled
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


@called(
    types.void, types.float32[::1], types.int64, types.uint64, INTEGERS, FLOATS, types.float64, types.int64[:, ::1],
)  # fmt: skip
def draw(vector, index, key, behinds, divisors, factor, memory):
    """Drop, in place, what is not drawn, and scale the rest; index: flat, of the first element. See `_keep`."""
    _keep(vector, index, key, (behinds, divisors), factor, memory)
