"""Merges: of all models into one, of what tasks share and which of it they keep, and the count of elected signs."""

import numpy as np
from numba import types

from workers.numerics.kernels.adding import add, add_both, add_magnitudes
from workers.numerics.kernels.bits import INFINITY, NOTHING, f32, f64, i64, u8, u32, u64
from workers.numerics.kernels.blocks import JUDGES, by_block
from workers.numerics.kernels.compiling import INPUT, INTEGERS, PROGRAM, SCRATCH, called, compiled
from workers.numerics.kernels.reading import are_finite, largest_bits, load, load_delta, write
from workers.numerics.kernels.reducing import keep_needed, keep_negative_zeros, reduce_rows, write_joined
from workers.numerics.kernels.voting import count_balance, sum_votes
from workers.numerics.programs import NOT_CLEAN, SUM_OF_ALL

GATHERS_BITS = u64(0x0102_0408_1020_4080)  # times eight bytes of 0 or 1: they are the bits of the highest byte


@compiled
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
        largest = max(largest, load_delta(given, model + 1, begin, base, delta))
        if model % 2 == 1:
            add_both(total, scratch.rows[model, :m], delta, 1.0, 1.0)
        elif model + 1 == n:
            add(total, delta, 1.0)
    for j in range(m):
        side[j] = f32(total[j] > 0.0) - f32(total[j] < 0.0)
        out[j] = f32(base[j] * side[j])
    for model in range(n):
        load(given, model + 1, begin, row)
        for j in range(m):
            turned = f32(row[j] * side[j])
            out[j] = turned if turned > out[j] else out[j]
    for j in range(m):
        out[j] = f32(out[j] * side[j]) if side[j] != f32(0.0) else base[j]
    return largest


@compiled
def _share_sum(given, begin, n, scratch, out):
    """Write the base plus the sum of n task vectors, which is left in the memory beside the models.

    Return the bits of the largest magnitude written: it is not finite where a model is not.
    """
    m = len(out)
    base, total = scratch.rows[0, :m], scratch.wide[0, :m]
    total[:] = NOTHING
    for model in range(n):
        row = scratch.rows[1 + model, :m]
        load(given, model + 1, begin, row)
        for j in range(m):
            total[j] += f64(row[j]) - f64(base[j])
    for j in range(m):
        out[j] = f32(total[j] + f64(base[j]))
    return largest_bits(out)


@compiled
def _keep_beside(delta, side, kept):
    for j in range(len(delta)):
        kept[j] = u8(f32(delta[j] * side[j]) > f32(0.0))


@compiled
def _keep_outweighing(row, base, total, threshold, kept):
    for j in range(len(row)):
        own = f64(row[j]) - f64(base[j])
        kept[j] = u8(abs(own) > abs(total[j] - own) * threshold)


@compiled
def _pack(kept, n, out):
    """Pack bytes of 0 or 1 into bits, the first one the lowest; the last byte is filled up with zeros."""
    for j in range(n, 8 * len(out)):
        kept[j] = u8(0)
    eights = kept.view(np.uint64)
    for j in range(len(out)):
        out[j] = u8(u64(eights[j] * GATHERS_BITS) >> u64(56))


@compiled
def _measure(delta, shared, kept, sums):
    """Add |task vector|, and |shared one| where it is kept, to the sums, [2, 256]. delta: it is overwritten."""
    add_magnitudes(delta, sums[0])
    for j in range(len(delta)):
        delta[j] = f32(shared[j] * f32(kept[j]))
    add_magnitudes(delta, sums[1])


@by_block
def _merge_by_block(given, first, begin, behind, scratch, state):
    """Merge; return the bits of the largest magnitude, or NOT_CLEAN where a task vector overflows."""
    program, out, to_bfloat16 = state
    m = behind - begin
    base, total = scratch.rows[0, :m], scratch.wide[0, :m]
    if reduce_rows(given, program, begin, scratch, total) >= INFINITY:
        return NOT_CLEAN
    if program.min_needing > 0:
        keep_needed(given, program, begin, scratch, total)
    return i64(write_joined(program, total, base, given.has_base, first + begin, out, to_bfloat16))


@by_block
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
    largest = max(largest, keep_negative_zeros(shared, base))
    write(shared, place, out, to_bfloat16)
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


@by_block
def _count_signs_by_block(given, _first, begin, behind, scratch, state):
    program, balance = state
    total = scratch.wide[0, : behind - begin]
    if sum_votes(given, program, begin, scratch, total) >= INFINITY and not are_finite(given, begin, behind - begin):
        return NOT_CLEAN
    balance[0] += count_balance(total)
    return i64(0)


@called(types.int64, INPUT, PROGRAM, SCRATCH, types.uint8[::1], types.boolean)
def merge(given, program, scratch, out, to_bfloat16):
    """Merge into `out`; return the bits of the largest magnitude; not clean are task vectors that overflow, too.

    Rows of which nothing is dropped are judged by their sum: it is not finite where one of them is not.
    """
    is_judged = program.of_deltas or (program.reduction == SUM_OF_ALL and program.joins_base == given.has_base)
    return _merge_by_block(given, not is_judged, scratch, (program, out, to_bfloat16))


@called(
    types.int64, INPUT, types.float64, SCRATCH, types.uint8[::1], types.boolean, types.uint8[:, ::1],
    types.int64[:, :, ::1],
)  # fmt: skip
def mask(given, threshold, scratch, out, to_bfloat16, masks, sums):
    """Merge what all tasks share into `out`, and mask it for each; return the bits of the largest magnitude.

    threshold: below 0, who lies on the side of the sum keeps an element. masks: [n, bytes]; sums: [n, 2, 256], or of
    no models where nothing is measured. Measured are task vectors in float32; the threshold is for those in float64.
    """
    return _mask_by_block(given, not JUDGES, scratch, (threshold, out, to_bfloat16, masks, sums))


@called(types.int64, INPUT, PROGRAM, SCRATCH, INTEGERS)
def count_signs(given, program, scratch, balance):
    """Write to `balance`, [1], how many more elements elect 1 than -1; those whose votes balance count for neither."""
    balance[:] = 0
    return _count_signs_by_block(given, not program.of_deltas, scratch, (program, balance))
