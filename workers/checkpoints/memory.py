"""Keeps the C library from giving a piece's temporaries back to the kernel after every operation.

Measured (glibc 2.36, 131,072 elements, one thread): a merge of three bfloat16 models spends 13 ns an element in page
faults and arithmetic by default, 3 ns in arithmetic alone once freed blocks are kept.
"""

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
KEPT_BYTES = 1 << 28
LARGEST_KEPT_BLOCK_BYTES = 1 << 25  # larger blocks (whole tensors) still go back at once


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks of a piece's size for the next piece; other C libraries are left alone."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT_BLOCK_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
