"""What a model has beyond a shared one: the entries that differ most (numerics/residuals.py)."""

from numba import types

from workers.numerics.kernels.bits import f32, i64, u64
from workers.numerics.kernels.compiling import INTEGERS, called


@called(
    types.int64, types.float32[::1], types.float32[::1], types.float32, types.int64, INTEGERS, types.float32[::1],
)  # fmt: skip
def pick(row, shared, magnitude, n_tied, indices, values):
    """Write index and value of what lies farther than `magnitude` from the shared row; return how many there are.

    Of the first n_tied entries also those that lie just as far.
    """
    n_found = i64(0)
    for j in range(n_tied):
        indices[u64(n_found)], values[u64(n_found)] = j, row[j]
        n_found += i64(abs(f32(row[j] - shared[j])) >= magnitude)
    for j in range(n_tied, len(row)):
        indices[u64(n_found)], values[u64(n_found)] = j, row[j]
        n_found += i64(abs(f32(row[j] - shared[j])) > magnitude)
    return n_found
