"""Patches from elsewhere: what the service wrote comes back as it was, what is wrong is named by file and tensor."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from app.domain.checkpoints import Manifest
from app.domain.errors import CheckpointInvalid
from tests.workers.files import FileMerge, ignore, write_checkpoint
from workers.pipelines.importing import import_checkpoint

Parts = dict[str, torch.Tensor]
FILE = "patches/model-0.safetensors"
METHODS = {"post_pruning": {"density": 0.03}, "emr": {}, "tsv_c": {}, "bitdelta": {}, "peru_fft": {"density": 1.0}}


def merge(
    folder: Path, method: str = "post_pruning", parameters: dict[str, float] | None = None
) -> tuple[Path, Manifest]:
    """Return the folder of a multitask merge of two small models, and its manifest."""
    random = torch.Generator().manual_seed(0)
    shapes = {"bias": (3,), "weight": (32, 16), "ids": (4,)}
    drawn = [
        {name: torch.randn(shape, generator=random) if name != "ids" else torch.arange(4) + seed * (seed == 2)}
        for seed in range(3)
        for name, shape in shapes.items()
    ]
    models = [{name: tensor for part in drawn[3 * n : 3 * n + 3] for name, tensor in part.items()} for n in range(3)]
    base, *rest = [write_checkpoint(folder / f"input-{n}", model) for n, model in enumerate(models)]
    return folder / "merged", FileMerge(method, parameters or METHODS[method])(base, rest, folder / "merged")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_a_merge_wrote_is_imported_as_what_it_was(method: str, tmp_path: Path) -> None:
    folder, manifest = merge(tmp_path, method)
    assert import_checkpoint(folder, ignore) == manifest


def rewrite(path: Path, change: Callable[[Parts], None], **metadata: str) -> None:
    with safe_open(path, framework="pt") as file:
        about = {**file.metadata(), **metadata}
    parts = load_file(path)
    change(parts)
    save_file(parts, path, about)


def swap(parts: Parts) -> None:
    parts["weight::indices"][:2] = parts["weight::indices"][[1, 0]].clone()


def lead_out(parts: Parts) -> None:
    parts["weight::indices"][-1] = 512


def shorten(parts: Parts) -> None:
    parts["weight::values"] = parts["weight::values"][:-1].clone()


def narrow(parts: Parts) -> None:
    parts["weight::values"] = parts["weight::values"].half()


def rename(parts: Parts) -> None:
    parts["other::values"] = torch.ones(2)


def lose(parts: Parts) -> None:
    del parts["weight::values"]


def reshape(parts: Parts) -> None:
    parts["ids::values"] = parts["ids::values"].view(2, 2)


def operate(parts: Parts) -> None:
    parts |= {"features::down": torch.ones(2, 8), "features::up": torch.ones(8, 3)}


def operate_in_half(parts: Parts) -> None:
    parts |= {"features::down": torch.ones(2, 8).half(), "features::up": torch.ones(8, 2)}


def operate_on_a_tensor(parts: Parts) -> None:
    del parts["weight::values"], parts["weight::indices"]
    parts |= {"weight::down": torch.ones(2, 8), "weight::up": torch.ones(8, 2)}


def leave(parts: Parts) -> None:
    """Change nothing."""


@pytest.mark.parametrize(
    ("change", "metadata", "says"),
    [
        (swap, {}, "tensor 'weight': found indices that do not ascend at place 1"),
        (lead_out, {}, "tensor 'weight': found the index 512, expected indices below its 512 entries"),
        (shorten, {}, "tensor 'weight': found values F32 [14], expected F32 [15]"),
        (narrow, {}, "tensor 'weight': found values F16 [15], expected F32 [15]"),
        (rename, {}, "tensor 'other': found parts of a tensor that the shared model has not"),
        (lose, {}, "tensor 'weight': found the parts indices, expected values, or indices and values"),
        (reshape, {}, "tensor 'ids': found values I64 [2, 2], expected I64 [4]"),
        (operate, {}, "tensor 'features': found down [2, 8] and up [8, 3], expected [rank, width] and [width, rank]"),
        (operate_in_half, {}, "tensor 'features': found down F16 [2, 8], expected F32 of two dimensions"),
        (operate_on_a_tensor, {}, "tensor 'weight': found the parts down, up, expected values, or indices and values"),
        (leave, {"applies_to": "0" * 64}, "found that it applies to weights 000"),
        (leave, {"task": "other"}, "found the task 'other', expected a name, and its file to be called"),
        (
            leave,
            {"version": "4"},
            "found format 'amalgam-patch' version '4', expected 'amalgam-patch' version 1 or 2 or 3",
        ),
        (leave, {"format": "pt"}, "found format 'pt' version '1', expected 'amalgam-patch' version 1 or 2 or 3"),
    ],
)
def test_what_is_wrong_is_named(
    change: Callable[[Parts], None], metadata: dict[str, str], says: str, tmp_path: Path
) -> None:
    folder, manifest = merge(tmp_path)
    file = manifest.patches[1].file
    rewrite(folder / file, change, **metadata)
    with pytest.raises(CheckpointInvalid, match=re.escape(file) + ".*" + re.escape(says)):
        import_checkpoint(folder, ignore)


def test_bits_in_place_of_indices_are_as_many_as_the_values(tmp_path: Path) -> None:
    folder, manifest = merge(tmp_path, "post_pruning", {"density": 0.3})
    assert import_checkpoint(folder, ignore) == manifest
    file = folder / manifest.patches[0].file
    kept = load_file(file)
    n_values = len(kept["weight::values"])

    def drop_one(parts: Parts) -> None:
        parts["weight::values"] = parts["weight::values"][:-1].clone()

    rewrite(file, drop_one)
    says = rf"tensor 'weight': found {n_values} bits in its mask, expected one for each of {n_values - 1} values"
    with pytest.raises(CheckpointInvalid, match=says):
        import_checkpoint(folder, ignore)

    def cut(parts: Parts) -> None:
        parts |= {**kept, "weight::mask": kept["weight::mask"][:-1].clone()}

    rewrite(file, cut)
    with pytest.raises(CheckpointInvalid, match=r"tensor 'weight': found mask U8 \[63\], expected U8 \[64\]"):
        import_checkpoint(folder, ignore)


def test_bits_behind_the_last_entry_are_refused(tmp_path: Path) -> None:
    folder, manifest = merge(tmp_path)

    def add(parts: Parts) -> None:
        parts["bias::mask"] = parts["bias::mask"] | 128
        parts["bias::values"] = torch.cat([parts["bias::values"], torch.ones(1)])

    rewrite(folder / manifest.patches[0].file, add)
    with pytest.raises(CheckpointInvalid, match="'bias': found bits in its mask behind the last of its 3"):
        import_checkpoint(folder, ignore)


def test_masks_need_the_base_that_they_lie_over(tmp_path: Path) -> None:
    folder, _ = merge(tmp_path, "emr")
    (folder / "base.safetensors").unlink()
    with pytest.raises(
        CheckpointInvalid, match=r"tensor 'bias': found a mask and no bias::values in base\.safetensors"
    ):
        import_checkpoint(folder, ignore)


def test_arithmetic_on_whole_numbers_is_refused(tmp_path: Path) -> None:
    folder, manifest = merge(tmp_path, "bitdelta")

    def sign(parts: Parts) -> None:
        parts.pop("ids::values", None)
        parts |= {"ids::signs": torch.zeros(1, dtype=torch.uint8), "ids::scale": torch.tensor(1.0)}

    rewrite(folder / manifest.patches[0].file, sign)
    with pytest.raises(CheckpointInvalid, match="tensor 'ids': found arithmetic on numbers of dtype I64"):
        import_checkpoint(folder, ignore)
