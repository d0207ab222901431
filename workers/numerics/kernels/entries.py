"""The fused kernels that are called: from rows as files hold them to merged numbers, block by block in the first cache.

Compiled by numba when this module is imported, or loaded from its cache; only numerics/fused.py does so. Loops are
short and without branches, one after the other over a block, because that is what becomes vector instructions; float64
sums use fused multiply-add, as torch's do, so that both give the same bits. Nothing here reorders or approximates.

What is called with rows returns NOT_CLEAN where they cannot be read or are not finite; else 0, if nothing is said.
"""

from workers.numerics.kernels.adding import sum_magnitudes
from workers.numerics.kernels.counting import (
    count_keys,
    count_overlaps,
    find_keys,
    join_counts,
    read_keys,
    spread,
    sum_norms,
)
from workers.numerics.kernels.drawing import draw
from workers.numerics.kernels.merging import count_signs, mask, merge
from workers.numerics.kernels.multiplying import combine_rows, inner_products, multiply_blocks
from workers.numerics.kernels.picking import pick
from workers.numerics.kernels.reading import read_rows
from workers.numerics.kernels.scoring import compete, diverge, share_out

__all__ = [
    "combine_rows", "compete", "count_keys", "count_overlaps", "count_signs", "diverge", "draw", "find_keys",
    "inner_products", "join_counts", "mask", "merge", "multiply_blocks", "pick", "read_keys", "read_rows", "share_out",
    "spread", "sum_magnitudes", "sum_norms",
]  # fmt: skip
