from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from app.domain.checkpoints import LocalCheckpoint, Manifest
from app.domain.errors import InputChanged, InvalidHeader
from workers.checkpoints.patch_files import PatchFile, PatchReader, PatchWriter, WrittenPatch
from workers.patches import Masked, Patch, Replacement, Signed, Whole, apply, encode, remove

FILES = [PatchFile("patches/a.safetensors", {"task": "a"}), PatchFile("patches/b.safetensors", {"task": "b"})]
NOTHING = Manifest(files=(), tensors=(), weights_digest="")


def checkpoint(folder: Path) -> LocalCheckpoint:
    return LocalCheckpoint(id="ckpt", path=folder, manifest=NOTHING)


def write(folder: Path, *, run: int = 1000) -> list[WrittenPatch]:
    """Write two tasks' patches, cut into runs."""
    generator = torch.Generator().manual_seed(1)
    names = {"n.half": torch.float16, "w.mask": torch.float32, "w.signs": torch.float32, "w.some": torch.float32}
    tensors = {name: torch.randn(3, 41, generator=generator) for name in names}
    writer = PatchWriter(folder, FILES)
    for name, dtype in names.items():
        values = tensors[name].view(-1)
        for offset in range(0, len(values), run):
            part = values[offset : offset + run]
            indices = (part > 0.3).nonzero().view(-1)
            patches: dict[str, Patch] = {
                "n.half": Whole(part), "w.mask": Masked(part > 0, 0.5), "w.signs": Signed(part > 0, 0.25),
                "w.some": Replacement(indices, part[indices]),
            }  # fmt: skip
            safetensors_dtype = "F16" if dtype == torch.float16 else "F32"
            for file in (0, 1):
                writer.write(file, name, safetensors_dtype, encode(patches[name], dtype, (3, 41), offset))
    return writer.finish({"method": "probe", "applies_to": "f00"})


def test_a_patch_file_is_a_safetensors_file_that_says_what_it_is(tmp_path: Path) -> None:
    written = write(tmp_path)
    with safe_open(tmp_path / "patches" / "b.safetensors", "pt") as file:
        assert file.metadata() == {
            "format": "amalgam-patch", "version": "3", "task": "b", "method": "probe", "applies_to": "f00",
        }  # fmt: skip
        shapes = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118
        bits = file.get_tensor("w.some::mask")
    n = shapes["w.some::values"][0]
    assert shapes == {
        "n.half::values": (3, 41), "w.mask::mask": (16,), "w.mask::scale": (), "w.signs::signs": (16,),
        "w.signs::scale": (), "w.some::mask": (16,), "w.some::values": (n,),
    }  # fmt: skip
    assert int(_unpack(bits).sum()) == n
    assert written[1].n_values == 123 + 2 + n
    assert written[1].entry.size_bytes == (tmp_path / "patches" / "b.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("n_kept", "part", "size", "version"),
    [(31, "indices", 124, "1"), (32, "indices", 128, "1"), (33, "mask", 128, "3")],
)
def test_indices_become_bits_where_these_are_smaller(
    n_kept: int, part: str, size: int, version: str, tmp_path: Path
) -> None:
    # of 1024 entries: 128 bytes of bits, or four of each index
    values = torch.arange(1024.0)
    for run in (1024, 100):
        writer = PatchWriter(tmp_path / f"{run}", FILES[:1])
        for offset in range(0, 1024, run):
            indices = torch.arange(max(0, min(run, 31 * n_kept - offset)))
            indices = indices[(indices + offset) % 31 == 0]
            patch = Replacement(indices, values[offset : offset + run][indices])
            writer.write(0, "w", "F32", encode(patch, torch.float32, (32, 32), offset))
        writer.write(0, "x", "F32", encode(Replacement(torch.arange(9), values[:9]), torch.float32, (1 << 10,), 0))
        writer.finish({})
    reader = PatchReader(checkpoint(tmp_path / "100"), FILES[0].path)
    assert reader.metadata["version"] == version
    parts = reader.parts("w")
    assert (sorted(parts), parts[part].numel() * parts[part].itemsize) == (sorted([part, "values"]), size)
    assert sorted(reader.parts("x")) == ["indices", "values"]
    tensor = -torch.ones(32, 32)
    apply(tensor, parts, None)
    expected = torch.where(torch.arange(1024) % 31 == 0, values, -1.0)
    expected[31 * n_kept :] = -1.0
    assert torch.equal(tensor.view(-1), expected)
    remove(tensor, parts, -torch.ones(32, 32))
    assert torch.equal(tensor, -torch.ones(32, 32))
    whole, cut = ((tmp_path / f"{run}" / FILES[0].path).read_bytes() for run in (1024, 100))
    assert whole == cut


@settings(max_examples=15, deadline=None)
@given(run=st.integers(1, 130))
def test_runs_of_any_length_give_the_same_bytes(run: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = write(tmp_path_factory.mktemp("whole"))
    cut = write(tmp_path_factory.mktemp("cut"), run=run)
    assert [patch.entry for patch in cut] == [patch.entry for patch in whole]


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    write(tmp_path, run=7)
    reader = PatchReader(checkpoint(tmp_path), "patches/a.safetensors")
    generator = torch.Generator().manual_seed(1)
    half, masked, signed, some = (torch.randn(3, 41, generator=generator) for _ in range(4))
    assert reader.tensors == {"n.half", "w.mask", "w.signs", "w.some"}
    assert torch.equal(reader.parts("n.half")["values"], half.half())
    assert torch.equal(_unpack(reader.parts("w.mask")["mask"]), masked.view(-1) > 0)
    assert torch.equal(_unpack(reader.parts("w.signs")["signs"]), signed.view(-1) > 0)
    parts = reader.parts("w.some")
    assert torch.equal(some.view(-1)[_unpack(parts["mask"])], parts["values"])
    assert (float(reader.parts("w.mask")["scale"]), float(reader.parts("w.signs")["scale"])) == (0.5, 0.25)
    assert reader.parts("elsewhere") == {}


def _unpack(packed: Tensor) -> Tensor:
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=123, bitorder="little").astype(np.bool_))


def test_nothing_is_left_beside_the_files(tmp_path: Path) -> None:
    write(tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "patches", "patches/a.safetensors", "patches/b.safetensors",
    ]  # fmt: skip
    writer = PatchWriter(tmp_path / "out", FILES)
    writer.write(0, "w", "F32", encode(Whole(torch.ones(2)), torch.float32, (2,), 0))
    writer.abandon()
    assert list((tmp_path / "out").iterdir()) == []


def test_files_that_are_gone_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "patches" / "a.safetensors"
    with pytest.raises(InputChanged, match=r"patches/c\.safetensors is not there any more"):
        PatchReader(checkpoint(tmp_path), "patches/c.safetensors")
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"version":"3"', b'"version":"9"'))
    with pytest.raises(InvalidHeader, match="found format 'amalgam-patch' version '9', expected"):
        PatchReader(checkpoint(tmp_path), "patches/a.safetensors")
    path.write_bytes(content[:-1])
    with pytest.raises(InvalidHeader):
        PatchReader(checkpoint(tmp_path), "patches/a.safetensors")
