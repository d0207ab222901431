"""Rows, block by block: how a kernel visits them, and how a model's block is loaded."""

import numpy as np

from workers.numerics.kernels.bits import f32, i32, i64, u32
from workers.numerics.kernels.compiling import compiled, inlined
from workers.numerics.kernels.drawing import keep_draw
from workers.numerics.kernels.reading import cut_part, load, load_delta, load_delta_between, read_part
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
        part_size, block_size = _whole(given.part, given), _whole(BLOCK, given)
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
    is_banded, is_drawn = len(program.marks) > 0, len(given.keys) > 0
    is_in_one = is_banded and program.of_deltas and not is_drawn
    if program.of_deltas and not is_in_one:
        largest = load_delta(given, number, begin, base, row)
    elif not is_in_one:
        load(given, number, begin, row)
    keep_draw(given, model, begin, row)
    if is_banded:
        band = program.marks[model], program.ends[model]
        largest = max(largest, _keep_band(given, number, begin, base, row, band, is_in_one))
    return largest


@compiled
def _keep_between(row, lower, upper):
    bits = row.view(np.int32)
    for j in range(len(row)):
        magnitude = abs(row[j])
        bits[j] = i32(bits[j] & i32(i32(magnitude <= upper) * i32(-1)) & i32(i32(magnitude > lower) * i32(-1)))


@compiled
def _keep_band(given, number, begin, base, row, band, loads):
    """Keep a band of a row; loads: the task vector is formed first, and the bits of its largest magnitude returned."""
    (marks, ends), index, n, largest = band, given.offset + begin, len(row), u32(0)
    first, second = min(max(ends[0] - index, 0), n), min(max(ends[1] - index, 0), n)
    near, far = min(first, second), max(first, second)
    for start, end in ((0, near), (near, far), (far, n)):
        lower = f32(marks[2] if start < first else marks[0])
        upper = f32(marks[3] if start < second else marks[1])
        if start < end and loads:
            some = base[start:end], row[start:end]
            largest = max(largest, load_delta_between(given, number, begin + start, *some, lower, upper))
        elif start < end:
            _keep_between(row[start:end], lower, upper)
    return largest


@compiled
def load_vector(given, model, begin, base, row):
    """Read a model's elements, or its task vector's where there is a base."""
    if given.has_base:
        load_delta(given, model + 1, begin, base, row)
    else:
        load(given, model, begin, row)
