"""Rows as files hold them: read, judged, widened to float32, taken from the base model; and results written."""

import numpy as np
from numba import types

from workers.fusion import BFLOAT16, FLOAT16, FLOAT32, NO_FILE
from workers.numerics.kernels.bits import INFINITY, MAGNITUDE, as_bits, f32, i32, to_float, u16, u32, u64
from workers.numerics.kernels.compiling import called, compiled, inlined, pread
from workers.numerics.programs import Input


@compiled
def _fill(file, place, out):
    """Read bytes of a file, and tell whether they are all there; whoever wants to know why not reads them again."""
    done = 0
    while done < len(out):
        n_bytes = pread(i32(file), out[done:].ctypes, u64(len(out) - done), place + done)
        if n_bytes <= 0:
            return False
        done += n_bytes
    return True


@called(types.boolean, types.int64, types.int64, types.int64, types.uint8[:, ::1])
def read_rows(file, place, stride, out):
    """Read rows of bytes that begin `stride` bytes from each other, and tell whether they are all there."""
    n_read = 0
    for row in range(len(out)):
        n_read += _fill(file, place + row * stride, out[row])
    return n_read == len(out)


@compiled
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


@compiled
def read_part(given, begin, n, at, judges):
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


@compiled
def are_finite(given, begin, n):
    """Tell whether the elements of all rows are finite: where a task vector is not, it may also have overflowed."""
    n_finite = 0
    for number in range(len(given.at)):
        n_finite += is_row_finite(given, number, begin, n)
    return n_finite == len(given.at)


@compiled
def is_row_finite(given, number, begin, n):
    item = 4 if given.kinds[number] == FLOAT32 else 2
    at = given.at[number] + item * begin
    return _is_finite(given.content[at : at + item * n], given.kinds[number])


@compiled
def cut_part(given, begin, n, at):
    return Input(
        given.content, at, given.kinds, given.files, given.places, n, given.offset + begin, given.has_base,
        given.is_judged, given.width, given.is_by_row, given.keys, given.behinds, given.divisors, given.factors,
        given.divergences, given.at_part, given.ranking, given.part,
    )  # fmt: skip


@inlined
def halves_of(given, number, begin, n):
    at = given.at[number] + 2 * begin
    return given.content[at : at + 2 * n].view(np.uint16)


@inlined
def words_of(given, number, begin, n):
    at = given.at[number] + 4 * begin
    return given.content[at : at + 4 * n].view(np.uint32)


@compiled
def load(given, number, begin, row):
    """Read a row's elements from `begin` on as float32; number: of the row, the base's first."""
    kind, n = given.kinds[number], len(row)
    if kind == BFLOAT16:
        _widen(halves_of(given, number, begin, n), row)
    elif kind == FLOAT32:
        _widen(words_of(given, number, begin, n), row)
    else:
        _widen_float16(halves_of(given, number, begin, n), row)


@compiled
def _widen(stored, row):
    for j in range(len(row)):
        row[j] = to_float(stored[j])


@compiled
def _widen_float16(half, row):
    bits = row.view(np.uint32)
    for j in range(len(row)):
        bits[j] = u32(u32(half[j] & u16(0x7FFF)) << u32(13))
    for j in range(len(row)):
        row[j] = f32(row[j] * f32(2.0**112))  # exact, also for subnormal numbers
    for j in range(len(row)):
        bits[j] = u32(bits[j] | u32(u32(half[j] & u16(0x8000)) << u32(16)))


@compiled
def load_delta(given, number, begin, base, row):
    """Read a row's elements from `begin` on, less the base; return the bits of the largest magnitude."""
    if given.kinds[number] == BFLOAT16:
        return _subtract(halves_of(given, number, begin, len(row)), base, row)
    if given.kinds[number] == FLOAT32:
        return _subtract(words_of(given, number, begin, len(row)), base, row)
    load(given, number, begin, row)
    return _subtract(row.view(np.uint32), base, row)


@compiled
def _subtract(stored, base, row):
    """Write stored numbers less the base to the row; return the bits of the largest magnitude."""
    largest = u32(0)
    for j in range(len(row)):
        delta = f32(to_float(stored[j]) - base[j])
        row[j] = delta
        largest = max(largest, u32(as_bits(delta) & MAGNITUDE))
    return largest


@compiled
def load_delta_between(given, number, begin, base, row, lower, upper):
    """Do as `load_delta`, and write 0.0 where the magnitude is not above `lower`, or is above `upper`."""
    if given.kinds[number] == BFLOAT16:
        return _subtract_between(halves_of(given, number, begin, len(row)), base, row, lower, upper)
    if given.kinds[number] == FLOAT32:
        return _subtract_between(words_of(given, number, begin, len(row)), base, row, lower, upper)
    load(given, number, begin, row)
    return _subtract_between(row.view(np.uint32), base, row, lower, upper)


@compiled
def _subtract_between(stored, base, row, lower, upper):
    largest, bits = u32(0), row.view(np.uint32)
    for j in range(len(row)):
        delta = f32(to_float(stored[j]) - base[j])
        magnitude = abs(delta)
        largest = max(largest, as_bits(magnitude))
        is_kept = u32(u32(magnitude <= upper) & u32(magnitude > lower))
        bits[j] = u32(as_bits(delta) & u32(u32(0) - is_kept))
    return largest


@compiled
def largest_bits(row):
    bits = row.view(np.uint32)
    largest = u32(0)
    for j in range(len(row)):
        largest = max(largest, u32(bits[j] & MAGNITUDE))
    return largest


@inlined
def rounded(bits):
    """Return a float32 number's bits, rounded to bfloat16's."""
    return u16(u32(u32(bits + u32(0x7FFF)) + u32(u32(bits >> u32(16)) & u32(1))) >> u32(16))


@compiled
def write(row, place, out, to_bfloat16):
    if to_bfloat16:
        _round_to_bfloat16(row, out[2 * place : 2 * (place + len(row))].view(np.uint16))
    else:
        _copy(row, out[4 * place : 4 * (place + len(row))].view(np.float32))


@compiled
def _round_to_bfloat16(row, out):
    bits = row.view(np.uint32)
    for j in range(len(row)):
        out[j] = rounded(bits[j])


@compiled
def _copy(row, out):
    for j in range(len(row)):
        out[j] = row[j]
