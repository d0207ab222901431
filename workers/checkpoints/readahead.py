"""Tells the disk of a range before it is read in small parts, so that all of it is on its way at once.

Threads that read here and there in one file look to the kernel like somebody who reads at random, and it reads ahead by
little. The range is asked for only where its end is not in the page cache: looking takes a microsecond, asking for two
megabytes that are there twenty.
"""

import errno
import os

WORTH_BYTES = 1 << 18  # of a range; the kernel reads ahead by as much itself
_UNKNOWN = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}  # what a file system says that cannot tell


def want(descriptor: int, begin: int, n_bytes: int) -> None:
    """Have the disk begin to read a range of a file; a hint only: nothing where the system has no such call."""
    if n_bytes >= WORTH_BYTES and hasattr(os, "posix_fadvise") and not _is_cached(descriptor, begin + n_bytes - 1):
        os.posix_fadvise(descriptor, begin, n_bytes, os.POSIX_FADV_WILLNEED)


def _is_cached(descriptor: int, place: int) -> bool:
    try:
        os.preadv(descriptor, [bytearray(1)], place, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        return False
    return True
