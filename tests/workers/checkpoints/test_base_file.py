from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from app.domain.errors import JobInternal
from app.domain.plans import PlannedTensor
from workers.checkpoints.base_file import BaseFile
from workers.checkpoints.hashing import hash_file
from workers.checkpoints.patch_files import PatchFile, PatchWriter
from workers.patches import Part

DIGEST = "f00d" * 16
TENSORS = {
    "a": torch.arange(6).view(2, 3).to(torch.bfloat16), "b": torch.arange(5).float(), "c": torch.tensor(2.0).bfloat16(),
}  # fmt: skip
DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def plan() -> list[PlannedTensor]:
    """Return three merged tensors, an empty one and one that is copied."""
    planned = [_plan(name, tensor) for name, tensor in TENSORS.items()]
    empty = planned[0].model_copy(update={"name": "empty", "shape": (0,), "end": 0})
    return [*planned, empty, planned[1].model_copy(update={"name": "step", "copied_because": "integer"})]


def _plan(name: str, tensor: Tensor) -> PlannedTensor:
    shape = tuple(tensor.shape)
    return PlannedTensor(
        name=name, dtype=DTYPES[tensor.dtype], shape=shape, file="", begin=0, end=tensor.nbytes, source=name
    )


def write(folder: Path) -> BaseFile:
    file = BaseFile(folder, plan(), {"method": "probe"})
    for name, tensor in TENSORS.items():
        runs = torch.split(tensor.view(-1), 4)
        for index in reversed(range(len(runs))):  # in any order
            file.place(name, 4 * index * tensor.itemsize, runs[index])
    return file


def test_it_is_a_patch_file_with_the_merged_tensors(tmp_path: Path) -> None:
    entry = write(tmp_path).finish(DIGEST)
    assert entry.sha256 == hash_file(tmp_path / "base.safetensors", lambda _: None)
    with safe_open(tmp_path / "base.safetensors", "pt") as found:
        about = {"format": "amalgam-patch", "version": "1", "applies_to": DIGEST, "method": "probe"}
        assert found.metadata() == about
        assert {name: found.get_tensor(name).tolist() for name in found.keys()} == {  # noqa: SIM118
            f"{name}::values": tensor.tolist() for name, tensor in TENSORS.items()
        }


def test_its_bytes_are_those_of_any_patch_file_with_the_same_parts(tmp_path: Path) -> None:
    entry = write(tmp_path).finish(DIGEST)
    writer = PatchWriter(tmp_path, [PatchFile("spooled.safetensors", {"method": "probe"})])
    for name, tensor in TENSORS.items():
        writer.write(0, name, DTYPES[tensor.dtype], [Part("values", tensor, tuple(tensor.shape))])
    (spooled,) = writer.finish({"applies_to": DIGEST})
    assert (entry.size_bytes, entry.sha256) == (spooled.entry.size_bytes, spooled.entry.sha256)


def test_nothing_is_left_of_what_is_abandoned(tmp_path: Path) -> None:
    write(tmp_path).abandon()
    assert list(tmp_path.iterdir()) == []


def test_a_digest_of_another_length_is_our_fault(tmp_path: Path) -> None:
    with pytest.raises(JobInternal, match="the weights digest 'abc' has not 64 digits"):
        write(tmp_path).finish("abc")
