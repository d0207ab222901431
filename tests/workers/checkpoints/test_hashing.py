"""Digests of files and of what lies in them, from one read, whatever the buffers, the files and the threads."""

import hashlib
import random
import threading
from pathlib import Path

import pytest
from blake3 import blake3

from app.domain.checkpoints import TensorSpec
from app.domain.errors import InputChanged
from workers.checkpoints import hashing
from workers.checkpoints.hashing import hash_all, hash_file, hash_weights

Files = list[tuple[Path, list[TensorSpec]]]


def _write(folder: Path, sizes: list[list[int]], header_bytes: int = 37) -> Files:
    """Write files of tensors of so many bytes, behind a header."""
    files: Files = []
    for index, of_file in enumerate(sizes):
        path = folder / f"{index}.safetensors"
        path.write_bytes(random.Random(index).randbytes(header_bytes + sum(of_file)))
        begins = [header_bytes + sum(of_file[:place]) for place in range(len(of_file))]
        tensors = [
            TensorSpec(
                name=f"{index}.{place}", dtype="U8", shape=(size,), file=path.name, begin=begin, end=begin + size
            )
            for place, (begin, size) in enumerate(zip(begins, of_file, strict=True))
        ]
        files.append((path, tensors))
    return files


def _assert_right(files: Files, threads: int) -> None:
    for (path, tensors), found in zip(files, hash_all(files, lambda _: None, threads=threads), strict=True):
        content = path.read_bytes()
        assert found.sha256 == hashlib.sha256(content).hexdigest()
        assert found.blake3_of == {one.name: blake3(content[one.begin : one.end]).hexdigest() for one in tensors}


@pytest.mark.parametrize("buffer_bytes", [1, 2, 7, 37, 38, 64, 1 << 20])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_digests_do_not_depend_on_buffers_or_threads(
    buffer_bytes: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "BUFFER_BYTES", buffer_bytes)
    _assert_right(_write(tmp_path, [[0, 5, 0, 0, 70, 1], [], [0], [64, 64], [3]]), threads)


def test_tensors_may_come_in_any_order(tmp_path: Path) -> None:
    ((path, tensors),) = _write(tmp_path, [[5, 0, 70, 1]])
    expected = hash_weights(path, tensors, lambda _: None)
    assert hash_weights(path, tensors[::-1], lambda _: None) == expected
    assert hash_file(path, lambda _: None) == expected.sha256


def _read_bytes() -> int:
    """Return how many bytes this process has asked the system for, from the page cache or not."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


@pytest.mark.parametrize("n_files", [1, 2, 7])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_each_byte_is_read_once(n_files: int, threads: int, tmp_path: Path) -> None:
    files = _write(tmp_path, [[1 << 20, 12345, 1 << 19]] * n_files)
    total = sum(path.stat().st_size for path, _ in files)
    heard: list[int] = []
    before = _read_bytes()
    hash_all(files, heard.append, threads=threads)
    read = _read_bytes() - before
    assert sum(heard) == total
    assert total <= read < total + 100_000  # what the count itself reads, and whatever else runs meanwhile


def test_no_more_threads_work_than_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "BUFFER_BYTES", 1 << 10)
    at_work: set[int] = set()
    most = 0
    lock = threading.Lock()
    update = hashing._TensorDigests.update

    def watch(digests: hashing._TensorDigests, content: memoryview) -> None:
        nonlocal most
        with lock:
            at_work.add(threading.get_ident())
            most = max(most, len(at_work))
        update(digests, content)
        with lock:
            at_work.remove(threading.get_ident())

    monkeypatch.setattr(hashing._TensorDigests, "update", watch)
    hash_all(_write(tmp_path, [[100_000]] * 5), lambda _: None, threads=2)
    assert 1 <= most <= 2


def test_an_idle_thread_takes_the_tensors_of_the_only_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: set[str] = set()
    update = hashing._TensorDigests.update

    def watch(digests: hashing._TensorDigests, content: memoryview) -> None:
        names.add(threading.current_thread().name)
        update(digests, content)

    monkeypatch.setattr(hashing._TensorDigests, "update", watch)
    for threads, n_files, expected in ((1, 1, 1), (2, 1, 1), (1, 3, 1)):
        names.clear()
        files = _write(tmp_path, [[50]] * n_files)
        hash_all(files, lambda _: None, threads=threads)
        assert len(names) == expected
        assert {name.startswith("hash") for name in names} == {threads > n_files}


@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_that_ends_before_a_tensor_does_is_named(threads: int, tmp_path: Path) -> None:
    files = _write(tmp_path, [[10], [20, 30]])
    path, _ = files[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputChanged, match=r"1\.safetensors became shorter while it was read; register it again"):
        hash_all(files, lambda _: None, threads=threads)


def test_an_error_while_a_file_is_hashed_ends_the_threads(tmp_path: Path) -> None:
    def fail(_n_bytes: int) -> None:
        raise RuntimeError("nobody listens")

    with pytest.raises(RuntimeError, match="nobody listens"):
        hash_all(_write(tmp_path, [[10], [20]]), fail, threads=2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hash")]
