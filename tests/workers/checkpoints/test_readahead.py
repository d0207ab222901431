import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.waiting import wait_until
from workers.checkpoints.readahead import WORTH_BYTES, want

SIZE = 8 * WORTH_BYTES


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """Open a file that is in the page cache."""
    path = tmp_path / "weights"
    path.write_bytes(bytes(SIZE))
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)  # else its pages cannot be dropped
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return what the kernel is asked for: (begin, bytes)."""
    ranges: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, begin, n_bytes, _advice: ranges.append((begin, n_bytes)))
    return ranges


def is_cached(file: int, place: int) -> bool:
    try:
        os.preadv(file, [bytearray(1)], place, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    return True


def test_a_range_on_the_disk_is_read_ahead(file: int) -> None:
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    if is_cached(file, SIZE - 1):
        pytest.skip("this file system lies in memory")
    want(file, WORTH_BYTES, 2 * WORTH_BYTES)
    wait_until(lambda: is_cached(file, WORTH_BYTES) and is_cached(file, 3 * WORTH_BYTES - 1))
    assert not is_cached(file, 0)  # nobody has read it


def test_a_range_in_the_page_cache_is_not_asked_for(file: int, asked: list[tuple[int, int]]) -> None:
    want(file, 0, SIZE)
    assert asked == []


@pytest.mark.parametrize("refused", [errno.EAGAIN, errno.EOPNOTSUPP])  # it is on the disk; nobody can tell
def test_only_what_is_worth_it_is_asked_for(
    refused: int, file: int, asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_file: int, _buffers: Sequence[bytearray], _place: int, _flags: int) -> int:
        raise OSError(refused, os.strerror(refused))

    monkeypatch.setattr(os, "preadv", refuse)
    want(file, 0, WORTH_BYTES - 1)
    assert asked == []
    want(file, 5, SIZE - 5)
    assert asked == [(5, SIZE - 5)]


def test_what_is_wrong_with_the_file_is_raised(file: int) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        want(-1, 0, SIZE)
