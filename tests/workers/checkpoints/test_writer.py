"""Writing: sizes known beforehand, digests on the way, and a full disk that leaves nothing behind."""

import hashlib
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from app.domain.checkpoints import digest_weights
from app.domain.errors import JobInternal, OutOfDisk
from app.domain.plans import MergePlan, make_plan
from tests.app.domain.plan_inputs import card_of, manifest_of, recipe_of
from workers.checkpoints.hashing import hash_file, hash_weights
from workers.checkpoints.writeback import start_writeback
from workers.checkpoints.writer import WORTH_BYTES, WeightsWriter


def plan_of(shard_bytes: int = 5_000_000_000, size: int = 100) -> MergePlan:
    manifest = manifest_of({"a": (size,), "empty": (0,), "s": (), "z": (3, 4)})
    return make_plan(recipe_of(shard_bytes=shard_bytes), manifest, [manifest], card_of())


def write_all(plan: MergePlan, folder: Path, step: int = 64, *, by_several: bool = False) -> WeightsWriter:
    writer = WeightsWriter(plan, folder, by_several=by_several)
    write_to(writer, plan, step)
    return writer


def write_to(writer: WeightsWriter, plan: MergePlan, step: int) -> None:
    for index, tensor in enumerate(plan.tensors):
        size = tensor.end - tensor.begin
        content = bytes([index + 1]) * size
        for offset in range(0, size, step) or [0]:
            part = memoryview(content[offset : offset + step])
            writer.place(tensor, offset, part)
            writer.digest(tensor, part)


@pytest.mark.parametrize("by_several", [False, True])
@pytest.mark.parametrize("shard_bytes", [50, 420, 5_000_000_000])
def test_files_and_digests_are_those_of_the_bytes_written(
    shard_bytes: int,
    *,
    by_several: bool,
    tmp_path: Path,
) -> None:
    plan = plan_of(shard_bytes)
    entries, blake3_of = write_all(plan, tmp_path, by_several=by_several).finish()
    assert [entry.path for entry in entries] == [file.path for file in plan.files]
    for entry in entries:
        content = (tmp_path / entry.path).read_bytes()
        assert (entry.size_bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert entry.sha256 == hash_file(tmp_path / entry.path, lambda _: None)
        tensors = [tensor.spec for tensor in plan.tensors if tensor.file == entry.path]
        hashed = hash_weights(tmp_path / entry.path, tensors, lambda _: None).blake3_of
        assert hashed == {tensor.name: blake3_of[tensor.name] for tensor in tensors}
    arrays = {name: array for entry in entries for name, array in load_file(tmp_path / entry.path).items()}
    assert {name: array.shape for name, array in arrays.items()} == {"a": (100,), "empty": (0,), "s": (), "z": (3, 4)}
    assert len(digest_weights([tensor.spec for tensor in plan.tensors], blake3_of)) == 64


def test_what_is_told_to_be_written_lies_in_the_file(tmp_path: Path) -> None:
    plan = plan_of(size=30_000)
    path = tmp_path / plan.files[0].path
    heard: dict[int, str] = {}  # number of bytes -> their digest
    writer = WeightsWriter(
        plan, tmp_path, lambda _, n_bytes: heard.update({n_bytes: sha256(path.read_bytes()[:n_bytes])}), by_several=True
    )
    write_to(writer, plan, 10_000)
    writer.finish()
    content = path.read_bytes()
    assert heard == {n_bytes: sha256(content[:n_bytes]) for n_bytes in heard}
    assert len(heard) > 10
    assert max(heard) == len(content)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def count_hashing() -> int:
    return sum(thread.name.startswith("digest") for thread in threading.enumerate())


def test_digests_are_the_same_when_they_are_taken_in_two(tmp_path: Path) -> None:
    found = []
    for by_several in (False, True):
        folder = tmp_path / str(by_several)
        folder.mkdir()
        writer = write_all(plan_of(size=WORTH_BYTES), folder, WORTH_BYTES + 4, by_several=by_several)  # and a short run
        assert count_hashing() == by_several
        found.append(writer.finish())
    assert found[0] == found[1]
    assert count_hashing() == 0


def test_no_thread_is_left_when_it_is_abandoned(tmp_path: Path) -> None:
    writer = write_all(plan_of(size=WORTH_BYTES), tmp_path, WORTH_BYTES, by_several=True)
    assert count_hashing() == 1
    writer.abandon()
    assert count_hashing() == 0


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond n bytes, as a full disk or a quota would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_told_before_a_byte_is_computed(tmp_path: Path) -> None:
    plan = plan_of(size=1 << 20)
    writer = WeightsWriter(plan, tmp_path)
    with largest_file(1 << 16), pytest.raises(OutOfDisk, match=r"model\.safetensors: no room for its 4194\d+ bytes"):
        writer.place(plan.tensors[0], 0, memoryview(b"x" * 8))
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def test_abandoning_removes_every_shard_that_was_begun(tmp_path: Path) -> None:
    write_all(plan_of(shard_bytes=50), tmp_path).abandon()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("by_several", [False, True])
@pytest.mark.parametrize("forgotten", ["placed", "hashed"])
def test_a_file_that_lacks_bytes_is_never_finished(forgotten: str, tmp_path: Path, *, by_several: bool) -> None:
    plan = plan_of(size=30_000)
    writer = WeightsWriter(plan, tmp_path, by_several=by_several)
    last = [tensor for tensor in plan.tensors if tensor.begin < tensor.end][-1]
    for tensor in plan.tensors:
        content = memoryview(bytes(tensor.end - tensor.begin))
        if tensor is not last or forgotten != "placed":
            writer.place(tensor, 0, content)
        if tensor is not last or forgotten != "hashed":
            writer.digest(tensor, content)
    with pytest.raises(JobInternal, match=r"model\.safetensors: not all of its 12\d+ bytes were placed and hashed"):
        writer.finish()
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    writer = WeightsWriter(plan_of(), tmp_path)
    with pytest.raises(FileExistsError):
        writer.place(plan_of().tensors[0], 0, memoryview(b"yours"))
    writer.abandon()
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"


def test_writing_a_range_early_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10_000)
    with path.open("rb") as stream:
        start_writeback(stream.fileno(), 0, 10_000)
        start_writeback(stream.fileno(), 4_096, 1 << 40)  # beyond the end: still only a hint
    assert path.read_bytes() == b"x" * 10_000
