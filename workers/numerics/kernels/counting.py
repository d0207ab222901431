"""Statistics of rows: keys around a rank, sums of magnitudes, variances, overlaps."""

import numpy as np
from numba import types

from workers.fusion import BFLOAT16, FLOAT32
from workers.numerics.kernels.adding import add, add_magnitudes
from workers.numerics.kernels.bits import (
    GROUP,
    INFINITY,
    MAGNITUDE,
    NOTHING,
    as_bits,
    compare,
    count_ones,
    f32,
    f64,
    first_one,
    i32,
    i64,
    to_float,
    u32,
    u64,
)
from workers.numerics.kernels.blocks import JUDGES, by_block, load_vector
from workers.numerics.kernels.compiling import (
    FLOATS,
    INPUT,
    INTEGERS,
    KEYS,
    SCRATCH,
    WIDE_ROWS,
    WINDOWS,
    called,
    compiled,
)
from workers.numerics.kernels.drawing import keep_draw
from workers.numerics.kernels.reading import (
    are_finite,
    cut_part,
    halves_of,
    is_row_finite,
    largest_bits,
    load,
    read_part,
    words_of,
)
from workers.numerics.kernels.scoring import weigh_run
from workers.numerics.programs import BLOCK, NOT_CLEAN


@compiled
def _find_between(keys, low, high, found, n_found):
    """Append the keys within a window to what was found; return how many lie above it, and how many are found now."""
    n_above, n_grouped = u64(0), len(keys) // GROUP * GROUP
    for begin in range(0, n_grouped, GROUP):
        within, above = compare(keys, begin, low, high)
        n_above += count_ones(above)
        while within != u64(0):
            found[u64(n_found)] = keys[u64(begin) + first_one(within)]
            n_found += 1
            within &= within - u64(1)
    for j in range(n_grouped, len(keys)):
        n_above += u64(keys[j] > high)
        if low <= keys[j] <= high:
            found[n_found] = keys[j]
            n_found += 1
    return i64(n_above), n_found


@compiled
def _load_keys(given, model, begin, scratch, row):
    """Read the bits of a model's magnitudes, or its task vector's, or of how much changes matter; return the largest.

    row: where the bits stand as float32 numbers.
    """
    base = scratch.rows[0, : len(row)]
    keys, number, kind = row.view(np.int32), model + i64(given.has_base), given.kinds[model + i64(given.has_base)]
    is_whole = given.has_base and len(given.keys) == 0 and len(given.divergences) == 0
    if is_whole and kind == BFLOAT16:
        return _subtract_to_keys(halves_of(given, number, begin, len(row)), base, keys)
    if is_whole and kind == FLOAT32:
        return _subtract_to_keys(words_of(given, number, begin, len(row)), base, keys)
    if len(given.divergences) > 0:
        theirs = scratch.rows[2, : len(row)]
        load(given, number, begin, theirs)
        weigh_run(theirs, base, given.divergences, given.width, given.offset + begin, row)
    else:
        load_vector(given, model, begin, base, row)
        keep_draw(given, model, begin, row)
        for j in range(len(row)):
            keys[j] = i32(keys[j] & i32(MAGNITUDE))
    return largest_bits(row)


@compiled
def _subtract_to_keys(stored, base, keys):
    largest = u32(0)
    for j in range(len(keys)):
        key = u32(as_bits(f32(to_float(stored[j]) - base[j])) & MAGNITUDE)
        largest = max(largest, key)
        keys[j] = i32(key)
    return largest


@by_block
def _count_keys_by_block(given, _first, begin, behind, scratch, state):
    windows, found, counts = state
    m, is_finite = behind - begin, True
    row = scratch.rows[1, :m]
    keys = row.view(np.int32)
    for model in range(len(windows.of_model) - 1):
        if windows.of_model[model] == windows.of_model[model + 1]:
            is_finite = is_finite and is_row_finite(given, model + i64(given.has_base), begin, m)
            continue
        largest = _load_keys(given, model, begin, scratch, row)
        is_finite = is_finite and (largest < INFINITY or are_finite(given, begin, m))
        for window in range(windows.of_model[model], windows.of_model[model + 1]):
            low, high = windows.lows[window], windows.highs[window]
            n_above, counts[window, 1] = _find_between(keys, low, high, found[window], counts[window, 1])
            counts[window, 0] += n_above
    return i64(0) if is_finite else NOT_CLEAN


@compiled
def _read_key_part(part, first, n, scratch, out):
    """Write the keys of a part of n elements to `out`, from the index `first` on."""
    for begin in range(0, n, BLOCK):
        behind = min(n, begin + BLOCK)
        if part.has_base:
            load(part, 0, begin, scratch.rows[0, : behind - begin])
        for model in range(len(out)):
            _load_keys(part, model, begin, scratch, out[model, first + begin : first + behind])


@compiled
def _find_equal(keys, key, index, found, n_found):
    """Append the indices of keys that equal one, as far as there is room; return how many are found now."""
    room, n_grouped = len(found), len(keys) // GROUP * GROUP
    for begin in range(0, n_grouped, GROUP):
        equal = compare(keys, begin, key, key)[0]
        while equal != u64(0) and n_found < room:
            found[n_found] = index + begin + i64(first_one(equal))
            n_found += 1
            equal &= equal - u64(1)
    for j in range(n_grouped, len(keys)):
        if keys[j] == key and n_found < room:
            found[n_found] = index + j
            n_found += 1
    return n_found


@by_block
def _sum_norms_by_block(given, _first, begin, behind, scratch, state):
    sums = state[0]
    base, row = scratch.rows[0, : behind - begin], scratch.rows[1, : behind - begin]
    for model in range(len(given.keys)):
        load_vector(given, model, begin, base, row)
        add_magnitudes(row, sums[0, model])
        keep_draw(given, model, begin, row)
        add_magnitudes(row, sums[1, model])
    return i64(0)


@by_block
def _count_overlaps_by_block(given, _first, begin, behind, scratch, state):
    threshold, counts = state
    m = behind - begin
    base, row, n_changing = scratch.rows[0, :m], scratch.rows[1, :m], scratch.rows[2, :m]
    n_changing[:] = f32(0.0)
    for model in range(len(counts)):
        changed = scratch.rows[3 + model, :m]
        load_vector(given, model, begin, base, row)
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


@by_block
def _spread_by_block(given, first, begin, behind, scratch, state):
    variances = state[0][first + begin : first + behind]
    n, m = len(given.kinds) - i64(given.has_base), behind - begin
    base, mean = scratch.rows[0, :m], scratch.wide[0, :m]
    mean[:] = NOTHING
    for model in range(n):
        row = scratch.rows[1 + model, :m]
        load_vector(given, model, begin, base, row)
        add(mean, row, 1.0)
    for j in range(m):
        mean[j] = mean[j] / n
    variances[:] = 0.0
    for model in range(n):
        row = scratch.rows[1 + model, :m]
        for j in range(m):
            apart = f64(row[j]) - mean[j]
            variances[j] += apart * apart
    return i64(0)


@called(types.int64, INPUT, WINDOWS, SCRATCH, types.int32[:, ::1], types.int64[:, ::1])
def count_keys(given, windows, scratch, found, counts):
    """Write to `counts` how many keys lie above each window and how many within, to `found` those within.

    found: [n_windows, n_elements]; counts: [n_windows, 2].
    """
    counts[:] = 0
    # others are judged by their keys
    return _count_keys_by_block(given, len(given.divergences) > 0, scratch, (windows, found, counts))


@called(types.int64, INPUT, INTEGERS, SCRATCH, WIDE_ROWS)
def read_keys(given, begins, scratch, out):
    """Write the bits of magnitudes to `out`, [n_models, runs · n_elements], where they stand as float32 numbers.

    begins: where runs begin, in elements from the rows' first.
    """
    at = given.at_part
    for run in range(len(begins)):
        for first in range(0, given.n_elements, given.part):
            begin, n = begins[run] + first, min(given.part, given.n_elements - first)
            if not read_part(given, begin, n, at, JUDGES):
                return NOT_CLEAN
            _read_key_part(cut_part(given, begin, n, at), run * given.n_elements + first, n, scratch, out)
    return i64(0)


@called(types.int64, INPUT, types.int32, SCRATCH, INTEGERS)
def find_keys(given, key, scratch, found):
    """Write indices of the one model's entries that have a key to `found`, from the rows' first on; return how many.

    No more is read once `found` is full.
    """
    at, keys, n_found = given.at_part, scratch.rows[1].view(np.int32), i64(0)
    for first in range(0, given.n_elements, given.part):
        n = min(given.part, given.n_elements - first)
        if not read_part(given, first, n, at, JUDGES):
            return NOT_CLEAN
        part = cut_part(given, first, n, at)
        for begin in range(0, n, BLOCK):
            m = min(n, begin + BLOCK) - begin
            if part.has_base:
                load(part, 0, begin, scratch.rows[0, :m])
            _load_keys(part, 0, begin, scratch, scratch.rows[1, :m])
            n_found = _find_equal(keys[:m], key, first + begin, found, n_found)
            if n_found == len(found):
                return n_found
    return n_found


@called(types.int64, INPUT, SCRATCH, types.int64[:, :, ::1])
def sum_norms(given, scratch, sums):
    """Write the sums of each task vector's magnitudes to `sums`, as its draws find and as they leave them.

    sums: [2, n_models, 256], by exponent.
    """
    sums[:] = 0
    return _sum_norms_by_block(given, JUDGES, scratch, (sums,))


@called(types.int64, INPUT, SCRATCH, FLOATS)
def spread(given, scratch, out):
    """Write the variance of the task vectors over the models, entry by entry. scratch: of as many models."""
    return _spread_by_block(given, JUDGES, scratch, (out,))


@called(types.int64, INPUT, types.float32, SCRATCH, types.int64[:, ::1])
def count_overlaps(given, threshold, scratch, counts):
    """Write to `counts`, [n_models, 2], how many entries above the threshold a model shares, and how many it does not.

    scratch: of as many models.
    """
    counts[:] = 0
    return _count_overlaps_by_block(given, JUDGES, scratch, (threshold, counts))


@called(types.int64, KEYS, INTEGERS, KEYS, INTEGERS, KEYS, INTEGERS)
def join_counts(keys, counts, other_keys, other_counts, out_keys, out_counts):
    """Write the keys of two ascending lists, each once, with the sum of its counts; return how many there are."""
    i, j, n = i64(0), i64(0), i64(0)
    while i < len(keys) and j < len(other_keys):
        one, other = keys[i], other_keys[j]
        is_one, is_other = i64(one <= other), i64(other <= one)
        out_keys[n], out_counts[n] = min(one, other), counts[i] * is_one + other_counts[j] * is_other
        i, j, n = i + is_one, j + is_other, n + 1
    for rest in range(i, len(keys)):
        out_keys[n], out_counts[n] = keys[rest], counts[rest]
        n += 1
    for rest in range(j, len(other_keys)):
        out_keys[n], out_counts[n] = other_keys[rest], other_counts[rest]
        n += 1
    return n
