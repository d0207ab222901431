"""What a merge leaves behind when it is killed, or the disk is full: never half an artifact, no changed input."""

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import OutOfDisk
from tests.waiting import wait_until
from tests.workers.files import write_checkpoint
from tests.workers.pipelines.merging import MergeOf

SLOW_MERGE = """
import sys, time
from pathlib import Path
from app.domain.checkpoints import LocalCheckpoint
from tests.workers.pipelines.merging import MergeOf, add_all, method_of

def slowly(base, finetuned, parameters, context):
    time.sleep(0.05)
    return add_all(base, finetuned, parameters, context)

base, model = (LocalCheckpoint.model_validate_json(Path(path).read_text()) for path in sys.argv[1:3])
MergeOf(method_of(slowly)).plan(base, model).run(Path(sys.argv[3]), threads=1, chunk_elements=100)
"""


def write_pair(folder: Path, n_elements: int = 10_000) -> tuple[LocalCheckpoint, LocalCheckpoint]:
    tensors = {"a": torch.ones(n_elements), "b": torch.ones(n_elements)}
    return write_checkpoint(folder / "base", tensors), write_checkpoint(folder / "model", tensors)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_merge_that_is_killed_leaves_its_own_folder_and_nothing_else(number: signal.Signals, tmp_path: Path) -> None:
    inputs, work = tmp_path / "inputs", tmp_path / "work"
    work.mkdir()
    arguments = []
    for checkpoint in write_pair(inputs):
        path = inputs / f"{checkpoint.id}.json"
        path.write_text(checkpoint.model_dump_json())
        arguments.append(str(path))
    before = {folder: digests(inputs / folder) for folder in ("base", "model")}
    command = [sys.executable, "-c", SLOW_MERGE, *arguments, str(work / "out")]
    process = subprocess.Popen(command, cwd=Path.cwd(), env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        wait_until((work / "out" / "model.safetensors").exists, deadline_seconds=60)
        process.send_signal(number)
        assert process.wait(timeout=30) == -number
    finally:
        process.kill()
    assert [path.name for path in work.iterdir()] == ["out"]
    assert [path.name for path in (work / "out").iterdir()] == ["model.safetensors"]  # no manifest: not an artifact
    assert {folder: digests(inputs / folder) for folder in ("base", "model")} == before
    shutil.rmtree(work / "out")


def test_a_disk_that_is_too_full_for_the_plan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    merge = MergeOf().plan(*write_pair(tmp_path))
    merge = replace(merge, plan=merge.plan.model_copy(update={"disk_bytes": 1 << 60}))
    with pytest.raises(OutOfDisk, match=r"needs 1152921504606846976 bytes of disk and \d+ are free"):
        merge.run(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond n bytes: what a full disk looks like to one process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_fills_up_while_the_second_shard_is_begun_leaves_no_shard(tmp_path: Path) -> None:
    base, model = write_pair(tmp_path)
    merge = MergeOf(changes={"shard_bytes": 40_000}).plan(base, model)
    assert len(merge.plan.files) == 2
    first, second = merge.plan.files
    larger = (first, second.model_copy(update={"size_bytes": 200_000}))  # the second one alone is beyond the limit
    merge = replace(merge, plan=merge.plan.model_copy(update={"files": larger}))
    with largest_file(100_000), pytest.raises(OutOfDisk, match=r"model-00002-of-00002\.safetensors: no room"):
        merge.run(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
