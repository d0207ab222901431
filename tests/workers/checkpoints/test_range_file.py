"""Ranges of a file: whatever meets within a page, and whatever the file system takes, the file is what was written."""

import errno
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.checkpoints.test_writer import largest_file
from workers.checkpoints.memory import PAGE_BYTES, lying_as
from workers.checkpoints.range_file import RangeFile


def content_of(n_bytes: int) -> bytes:
    return random.Random(n_bytes).randbytes(n_bytes)


def cut(content: bytes, places: list[int]) -> Iterator[tuple[int, memoryview]]:
    """Yield ranges with their positions, empty ones too; every other one lies in memory as in the file."""
    for index, (begin, end) in enumerate(
        pairwise(sorted([0, *(at % (len(content) + 1) for at in places), len(content)]))
    ):
        own = lying_as(begin + index % 2, end - begin)
        own[:] = np.frombuffer(content[begin:end], dtype=np.uint8)
        yield begin, own.data


@pytest.fixture
def has_direct(tmp_path: Path) -> None:
    if not can_go_past(tmp_path):
        pytest.skip("this file system cannot write past the page cache")


def can_go_past(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    except OSError:
        return False
    try:
        return os.pwrite(descriptor, lying_as(0, PAGE_BYTES).data, 0) == PAGE_BYTES
    except OSError:
        return False
    finally:
        os.close(descriptor)
        (folder / "probe").unlink()


def is_cached(path: Path, position: int) -> bool:
    """Tell whether reading would not have to wait for the disk."""
    with path.open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead
        try:
            return os.preadv(stream.fileno(), [bytearray(1)], position, os.RWF_NOWAIT) == 1
        except BlockingIOError:
            return False


@given(
    n_bytes=st.integers(1, 5 * PAGE_BYTES),
    places=st.lists(st.integers(0, 5 * PAGE_BYTES), max_size=8),
    seed=st.randoms(use_true_random=False),
    past_cache=st.booleans(),
)
def test_a_file_is_what_was_written_wherever_it_was_cut(
    tmp_path_factory: pytest.TempPathFactory, n_bytes: int, places: list[int], seed: random.Random, *, past_cache: bool
) -> None:
    path, content = tmp_path_factory.mktemp("ranges") / "file", content_of(n_bytes)
    ranges = list(cut(content, places))
    seed.shuffle(ranges)
    with closing(RangeFile(path, n_bytes, past_cache=past_cache)) as file:
        for position, part in ranges:
            file.write(part, position)
    assert path.read_bytes() == content


def test_threads_that_meet_within_a_page_lose_nothing(tmp_path: Path) -> None:
    content = content_of(40 * PAGE_BYTES + 5)
    ranges = list(cut(content, list(range(0, len(content), 700))))
    with closing(RangeFile(tmp_path / "file", len(content), past_cache=True)) as file, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: file.write(one[1], one[0]), ranges))
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.usefixtures("has_direct")
def test_whole_pages_never_go_through_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.checkpoints.range_file.write_range", _accept_nothing)
    content = content_of(8 * PAGE_BYTES)
    with closing(RangeFile(tmp_path / "file", len(content), past_cache=True)) as file:
        for position, part in cut(content, [5, 3 * PAGE_BYTES + 17]):
            file.write(part, position)
    assert (tmp_path / "file").read_bytes() == content


def _accept_nothing(_descriptor: int, content: memoryview, _position: int) -> None:
    assert len(content) == 0


@pytest.mark.usefixtures("has_direct")
def test_whole_pages_are_not_left_in_the_cache(tmp_path: Path) -> None:
    content = content_of(8 * PAGE_BYTES)
    for past_cache in (True, False):
        path = tmp_path / str(past_cache)
        with closing(RangeFile(path, len(content), past_cache=past_cache)) as file:
            for position, part in cut(content, [3 * PAGE_BYTES + 17]):
                file.write(part, position)
    assert not any(is_cached(tmp_path / "True", at) for at in range(0, len(content), PAGE_BYTES))
    assert (tmp_path / "True").read_bytes() == (tmp_path / "False").read_bytes() == content


@pytest.mark.usefixtures("has_direct")
def test_what_is_settled_can_be_read_while_more_is_written(tmp_path: Path) -> None:
    path, content = tmp_path / "file", content_of(6 * PAGE_BYTES + 100)
    with closing(RangeFile(path, len(content), past_cache=True)) as file:
        for position, part in cut(content, [1000, PAGE_BYTES + 1, 2 * PAGE_BYTES, 3 * PAGE_BYTES - 1]):
            file.write(part, position)
            settled = file.count_settled(position + len(part))
            assert settled > position + len(part) - PAGE_BYTES
            assert path.read_bytes()[:settled] == content[:settled]
    assert settled == len(content)


@pytest.mark.parametrize("step", ["open", "write"])
@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_go_past_its_cache_is_written_through_it(
    step: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, step, code)
    content = content_of(5 * PAGE_BYTES + 9)
    with closing(RangeFile(tmp_path / "file", len(content), past_cache=True)) as file:
        for position, part in cut(content, [PAGE_BYTES + 40, 4 * PAGE_BYTES]):
            file.write(part, position)
            if step == "open":
                assert file.count_settled(PAGE_BYTES + 1) == PAGE_BYTES + 1  # nothing waits for the rest of a page
    assert (tmp_path / "file").read_bytes() == content


def refuse(monkeypatch: pytest.MonkeyPatch, step: str, code: int) -> None:
    """Let the kernel refuse what goes past the cache."""
    real_open, real_write, direct = os.open, os.pwrite, set[int]()

    def open_file(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT and step == "open":
            raise OSError(code, os.strerror(code))
        descriptor = real_open(path, flags, mode)
        if flags & os.O_DIRECT:
            direct.add(descriptor)
        return descriptor

    def write(descriptor: int, content: memoryview, position: int) -> int:
        if descriptor in direct:
            raise OSError(code, os.strerror(code))
        return real_write(descriptor, content, position)

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "pwrite", write)


@pytest.mark.parametrize("n_taken", [PAGE_BYTES, 2 * PAGE_BYTES, PAGE_BYTES + 512])
def test_writes_that_end_early_are_gone_on_with(n_taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, at: real(file, content[:n_taken], at))
    content = content_of(7 * PAGE_BYTES)
    with closing(RangeFile(tmp_path / "file", len(content), past_cache=True)) as file:
        file.write(memoryview(content), 0)
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.usefixtures("has_direct")
def test_an_error_of_the_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "write", errno.EIO)
    file = RangeFile(tmp_path / "file", PAGE_BYTES, past_cache=True)
    with closing(file), pytest.raises(OSError, match=os.strerror(errno.EIO)):
        file.write(lying_as(0, PAGE_BYTES).data, 0)


def test_no_file_is_left_where_there_is_no_room(tmp_path: Path) -> None:
    with largest_file(1 << 16), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        RangeFile(tmp_path / "file", 1 << 20, past_cache=True)
    assert list(tmp_path.iterdir()) == []
