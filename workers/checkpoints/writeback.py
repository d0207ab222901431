"""Writes ranges of a file so that the disk begins at once, and fsync has little to do.

Where the kernel can (Linux 6.14), the pages leave its cache once they are on the disk: they are not read again soon,
the models that are merged are. Measured (ext4, 2.1 GB): 0.85 s with fsync and 0.6 s of CPU; through the cache 1.05 s
where its pages were in use before, 6 s where a virtual machine's host had yet to supply them. Elsewhere the range's
writing is merely started: fsync then takes 0.1 s instead of 0.6 to 1.3 s.
"""

import ctypes
import errno
import os

_DROP_BEHIND = 0x80  # RWF_DONTCACHE of linux/fs.h
_UNKNOWN = {
    errno.EINVAL,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
}  # what a kernel or file system says to a flag it does not know
_WORTH_BYTES = 1 << 19  # of a range to start; smaller ones are left to fsync
_START = 2  # SYNC_FILE_RANGE_WRITE
_LIBRARY = ctypes.CDLL(None)


def write_range(descriptor: int, content: memoryview, position: int) -> None:
    """Write all of the content at a position of the file, and let the disk begin with it.

    Raises: OSError.
    """
    begin, rest = position, content
    flags = _DROP_BEHIND if hasattr(os, "pwritev") else 0
    while len(rest) > 0:
        try:
            n_bytes = (
                os.pwritev(descriptor, [rest], position, flags) if flags else os.pwrite(descriptor, rest, position)
            )
        except OSError as error:
            if not flags or error.errno not in _UNKNOWN:
                raise
            flags = 0
            continue
        rest = rest[n_bytes:]
        position += n_bytes
    if not flags:
        start_writeback(descriptor, begin, position - begin)


def start_writeback(descriptor: int, begin: int, n_bytes: int) -> None:
    """Begin to write a range of the file; a hint only: where the system has no such call, fsync does it all."""
    if n_bytes >= _WORTH_BYTES and hasattr(_LIBRARY, "sync_file_range"):
        _LIBRARY.sync_file_range(descriptor, ctypes.c_int64(begin), ctypes.c_int64(n_bytes), _START)
