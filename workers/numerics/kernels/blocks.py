"""Rows, block by block: how a kernel visits them, and how a model's block is loaded."""

import numpy as np

from workers.fusion import PART
from workers.numerics.kernels.bits import f32, i32, i64, u32
from workers.numerics.kernels.compiling import compiled, inlined
from workers.numerics.kernels.drawing import keep_draw
from workers.numerics.kernels.reading import cut_part, load, load_delta, read_part
from workers.numerics.programs import BLOCK, NOT_CLEAN

JUDGES = True


def by_block(visit):
    """Make of a function that sees one block of all rows one that sees them block by block.

    It is given a part of the rows, which lies in the second cache; the index of that part's first element; the range of
    the block within the part; memory, whose first row is the base's block; and the state. The largest number that it
    returns is returned, or NOT_CLEAN: for rows that cannot be read or are not finite (as far as `judges` says).
    """
    visit = inlined(visit)

    @compiled
    def visit_all(given, judges, scratch, state):
        largest, at = i64(0), given.at_part
        part_size, block_size = _whole(PART, given), _whole(BLOCK, given)
        for first in range(0, given.n_elements, part_size):
            n = min(part_size, given.n_elements - first)
            if not read_part(given, first, n, at, judges):
                return NOT_CLEAN
            part = cut_part(given, first, n, at)
            for begin in range(0, n, block_size):
                behind = min(n, begin + block_size)
                if given.has_base:
                    load(part, 0, begin, scratch.rows[0, : behind - begin])
                largest = max(largest, visit(part, first, begin, behind, scratch, state))
        return largest

    return visit_all


@compiled
def _whole(n, given):
    """Return n elements, or about as many in whole rows, if these are not cut."""
    return max(1, n // given.width) * given.width if given.is_by_row else n


@compiled
def load_masked(given, program, model, begin, base, row):
    """Load a model's row, form the task vector, drop what is dropped; return the largest magnitude's bits."""
    largest, number = u32(0), model + i64(given.has_base)
    if program.of_deltas:
        largest = load_delta(given, number, begin, base, row)
    else:
        load(given, number, begin, row)
    keep_draw(given, model, begin, row)
    if len(program.marks) > 0:
        _keep_band(row, given.offset + begin, program.marks[model], program.ends[model])
    return largest


@compiled
def _keep_between(row, lower, upper):
    bits = row.view(np.int32)
    for j in range(len(row)):
        magnitude = abs(row[j])
        bits[j] = i32(bits[j] & i32(i32(magnitude <= upper) * i32(-1)) & i32(i32(magnitude > lower) * i32(-1)))


@compiled
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


@compiled
def load_vector(given, model, begin, base, row):
    """Read a model's elements, or its task vector's where there is a base."""
    if given.has_base:
        load_delta(given, model + 1, begin, base, row)
    else:
        load(given, model, begin, row)
