from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.domain.checkpoints import LocalCheckpoint, Manifest
from app.domain.errors import InputChanged
from workers.checkpoints.patch_files import PatchFile, PatchReader, PatchWriter
from workers.checkpoints.patch_runs import RUN_ELEMENTS, cut_runs, read_runs
from workers.patches import LowRank, Masked, Patch, Replacement, Signed, Whole, apply, encode

FILE = PatchFile("patches/a.safetensors", {"task": "a"})
SHAPE = (600, 5)  # rows of which 256 are multiplied at once
N = 3000


def write(folder: Path) -> PatchReader:
    """Write a patch of each kind, of a tensor each."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(N, generator=generator)
    few, many = ((values > least).nonzero().view(-1) for least in (2.2, 0.3))  # indices; as bits they take less room
    patches: dict[str, Patch] = {
        "bits": Replacement(many, values[many]), "indices": Replacement(few, values[few]),
        "masked": Masked(values > 0, 0.5), "signed": Signed(values > 0, 0.25), "whole": Whole(values),
        "product": LowRank(torch.randn(2, 5, generator=generator), torch.randn(600, 2, generator=generator)),
    }  # fmt: skip
    writer = PatchWriter(folder, [FILE])
    for name, patch in patches.items():
        writer.write(0, name, "F32", encode(patch, torch.float32, SHAPE, 0))
    writer.finish({})
    manifest = Manifest(files=(), tensors=(), weights_digest="")
    return PatchReader(LocalCheckpoint(id="ckpt", path=folder, manifest=manifest), FILE.path)


def patched_by_runs(reader: PatchReader, name: str, runs: list[tuple[int, int]]) -> Tensor:
    """Return a tensor of threes over a base of ones, patched run by run."""
    tensor = torch.full((N,), 3.0)
    for (first, behind), parts in zip(runs, read_runs(reader, name, runs), strict=True):
        apply(tensor[first:behind], parts, torch.ones(behind - first))
    return tensor


@settings(max_examples=12, deadline=None)
@given(size=st.integers(1, N // 8 + 1).map(lambda n: 8 * n))
def test_runs_patch_as_the_whole_does(size: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    reader = write(tmp_path_factory.mktemp("patch"))
    kinds = {name: sorted(reader.parts(name)) for name in ("bits", "indices")}
    assert kinds == {"bits": ["mask", "values"], "indices": ["indices", "values"]}
    for name in sorted(reader.tensors):
        runs = [(first, min(N, first + size)) for first in range(0, N, size)]
        if name == "product":
            runs = cut_runs(N, [reader.specs(name)])
            assert runs == [(0, 1280), (1280, 2560), (2560, 3000)]  # 256 rows of 5
        whole = torch.full((N,), 3.0)
        apply(whole, reader.parts(name), torch.ones(N))
        assert torch.equal(patched_by_runs(reader, name, runs), whole)


def test_a_tensor_without_a_patch_has_runs_without_parts(tmp_path: Path) -> None:
    assert list(read_runs(write(tmp_path), "elsewhere", [(0, 8), (8, 9)])) == [{}, {}]


def test_runs_are_short_and_an_empty_tensor_is_one() -> None:
    assert cut_runs(0, []) == [(0, 0)]
    assert cut_runs(RUN_ELEMENTS + 1, [{}]) == [(0, RUN_ELEMENTS), (RUN_ELEMENTS, RUN_ELEMENTS + 1)]


def test_a_file_that_became_shorter_is_named(tmp_path: Path) -> None:
    reader = write(tmp_path)
    path = tmp_path / FILE.path
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputChanged, match=r"patches/a\.safetensors became shorter while it was read"):
        for name in sorted(reader.tensors):
            list(read_runs(reader, name, [(0, N)]))
