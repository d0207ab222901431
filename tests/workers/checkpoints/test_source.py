"""Reading runs of elements: every dtype as float32, files that changed, numbers that are none."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import InputChanged, NotFinite
from app.domain.recipes import NanPolicy
from tests.workers.files import ignore, write_checkpoint
from workers.checkpoints.reader import TensorReader
from workers.checkpoints.source import CheckpointSource, MergedTensor
from workers.fusion import LARGEST_PART, LEAST_PART, part_of
from workers.numerics import fused
from workers.pipelines.importing import import_checkpoint
from workers.stored import StoredModels

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def source_of(
    *checkpoints: LocalCheckpoint, piece_elements: int = 4, nan_policy: NanPolicy = "fail", threads: int = 2
) -> CheckpointSource:
    """Return a source over a base and its models; the files stay open until the test ends."""
    manifests = [{tensor.name: tensor for tensor in checkpoint.manifest.tensors} for checkpoint in checkpoints]
    merged: dict[str, MergedTensor] = {}
    position = 0
    for name, spec in manifests[0].items():
        models = tuple(manifest[name] for manifest in manifests[1:])
        merged[name] = MergedTensor(name, spec.shape, position, spec, models)
        position += spec.n_elements
    readers = [TensorReader(checkpoint) for checkpoint in checkpoints]
    return CheckpointSource(
        base=readers[0],
        models=readers[1:],
        merged=merged,
        weights=[1.0] * len(readers[1:]),
        piece_elements=piece_elements,
        threads=threads,
        nan_policy=nan_policy,
    )


def write_pair(folder: Path, tensors: dict[str, Tensor], **changes: Tensor) -> tuple[LocalCheckpoint, LocalCheckpoint]:
    return write_checkpoint(folder / "base", tensors), write_checkpoint(folder / "model", {**tensors, **changes})


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_read_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    base, model = write_pair(tmp_path, {"w": tensor})
    piece = source_of(base, model).read("w", 4, 7)
    assert piece.base is not None
    assert torch.equal(piece.base, tensor.float().flatten()[4:11])
    assert torch.equal(piece.finetuned, piece.base.unsqueeze(0))
    assert (piece.offset, piece.position, piece.shape) == (4, 4, (3, 5))


def test_pieces_come_in_order_and_cover_everything_once(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(7.0), "b": torch.tensor(7.0), "empty": torch.empty(0, 3), "z": torch.arange(8.0, 17.0)}
    source = source_of(*write_pair(tmp_path, tensors), piece_elements=2, threads=4)
    found = list(source.map(lambda piece: (piece.tensor, piece.position, piece.finetuned[0].tolist())))
    assert [value for _, _, values in found for value in values] == list(range(17))
    assert [position for _, position, _ in found] == [0, 2, 4, 6, 7, 8, 10, 12, 14, 16]
    assert {name for name, _, _ in source.map(lambda piece: (piece.tensor, 0, 0), {"b"})} == {"b"}


def test_what_is_read_on_its_own_stays_valid(tmp_path: Path) -> None:
    source = source_of(*write_pair(tmp_path, {"w": torch.arange(8.0)}))
    first = source.read("w", 0, 4)
    source.read("w", 4, 4)
    assert first.finetuned.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_is_named_with_tensor_model_and_index(
    value: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    broken = torch.zeros(3, 4, dtype=dtype)
    broken[2, 1] = value
    base, model = write_pair(tmp_path, {"a": torch.ones(3), "w": torch.zeros(3, 4, dtype=dtype)}, w=broken)
    with pytest.raises(NotFinite, match=rf"Tensor 'w' of models\[0\] \(model\) is {value} at flat index 9"):
        list(source_of(base, model).map(lambda _: None))
    with pytest.raises(NotFinite, match="Tensor 'w' of the base model"):
        list(source_of(model, base).map(lambda _: None))


def test_what_a_whole_pass_found_finite_is_not_judged_again_but_zeroed_every_time(tmp_path: Path) -> None:
    broken = torch.tensor([1.0, float("nan"), 1.0, 1.0, 1.0])
    base, model = write_pair(tmp_path, {"a": torch.ones(5), "w": torch.ones(5)}, w=broken)
    refusing, zeroing = source_of(base, model), source_of(base, model, nan_policy="zero")
    assert len(list(refusing.map(lambda _: None, {"a"}))) == 2
    for _ in range(2):
        with pytest.raises(NotFinite, match="Tensor 'w'"):
            list(refusing.map(lambda _: None, {"w"}))
        assert sum(zeroing.map(lambda piece: piece.finetuned.sum().item(), {"w"})) == 4.0


def test_numbers_whose_sum_overflows_are_finite_all_the_same(tmp_path: Path) -> None:
    large = torch.full((6,), 3e38)
    assert len(list(source_of(*write_pair(tmp_path, {"w": large})).map(lambda _: None))) == 2


def test_zero_policy_reads_what_is_not_finite_as_zero(tmp_path: Path) -> None:
    broken = torch.tensor([1.0, float("nan"), float("inf"), float("-inf")])
    base, model = write_pair(tmp_path, {"w": torch.ones(4)}, w=broken)
    assert source_of(base, model, nan_policy="zero").read("w", 0, 4).finetuned.tolist() == [[1, 0, 0, 0]]


def test_float64_beyond_float32_is_not_finite(tmp_path: Path) -> None:
    base, model = write_pair(tmp_path, {"w": torch.tensor([1e300], dtype=torch.float64)})
    with pytest.raises(NotFinite, match="is inf"):
        list(source_of(base, model).map(lambda _: None))


def test_unaligned_tensors_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    content = (
        b'{"u":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}'
    )
    body = b"\x07" + torch.tensor([1.5, -2.5]).numpy().tobytes()
    (tmp_path / "model.safetensors").write_bytes(len(content).to_bytes(8, "little") + content + body)
    checkpoint = LocalCheckpoint(id="odd", path=tmp_path, manifest=import_checkpoint(tmp_path, ignore))
    out = torch.empty(2)
    with TensorReader(checkpoint) as reader:
        reader.read_floats(checkpoint.manifest.tensors[1], 0, out)
    assert out.tolist() == [1.5, -2.5]


def test_a_file_that_changed_its_length_is_refused(tmp_path: Path) -> None:
    base, model = write_pair(tmp_path, {"w": torch.ones(4)})
    with (model.path / "model.safetensors").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(InputChanged, match=r"model: model\.safetensors has .* bytes, expected .* as registered"):
        source_of(base, model)


def test_a_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    base, model = write_pair(tmp_path, {"w": torch.ones(4)})
    (model.path / "model.safetensors").unlink()
    with pytest.raises(InputChanged, match=r"model: model\.safetensors is not there any more"):
        source_of(base, model)


def test_a_file_that_shrinks_while_it_is_read_is_an_error_not_a_crash(tmp_path: Path) -> None:
    base, model = write_pair(tmp_path, {"w": torch.ones(4)})
    source = source_of(base, model)
    os.truncate(model.path / "model.safetensors", 40)
    with pytest.raises(InputChanged, match=r"model: model\.safetensors ends before byte"):
        source.read("w", 0, 4)


@pytest.mark.parametrize("has_kernels", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_of_models_that_are_not_held_are_those_of_the_whole(
    dtype: torch.dtype, *, has_kernels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fused.load()
    monkeypatch.setattr(fused, "is_ready", lambda: has_kernels)
    generator = torch.Generator().manual_seed(0)
    tensor, other = (torch.randn(6, 5, generator=generator).to(dtype) for _ in range(2))
    source = source_of(*write_pair(tmp_path, {"a": torch.ones(3), "w": tensor}, w=other))
    (piece,) = source.map(lambda piece: piece, {"w"}, granularity="matrix")
    assert isinstance(piece.models, StoredModels)
    assert (piece.shape, piece.position, piece.n_elements, len(piece.models)) == ((6, 5), 3, 30, 1)
    assert piece.base is not None
    assert torch.equal(piece.base.view(6, 5), tensor.float())
    assert torch.equal(piece.finetuned, other.float().view(1, 30))
    models = piece.models.reshape(1, 6, 5)
    assert torch.equal(next(iter(models)), other.float())
    assert torch.equal(models.read_block(0, slice(1, 5), slice(2, 4), 5), other.float()[1:5, 2:4])
    assert torch.equal(models.read_block(0, slice(1, 5), slice(0, 5), 5), other.float()[1:5])


def test_whole_tensors_are_judged_before_they_are_read_as_needed(tmp_path: Path) -> None:
    broken = torch.tensor([[1.0, 1.0], [1.0, float("nan")]])
    base, model = write_pair(tmp_path, {"w": torch.ones(2, 2)}, w=broken)
    with pytest.raises(NotFinite, match=r"Tensor 'w' of models\[0\] \(model\) is nan at flat index 3"):
        list(source_of(base, model).map(lambda _: None, granularity="matrix"))
    zeroing = source_of(base, model, nan_policy="zero")
    assert list(zeroing.map(lambda piece: piece.finetuned.tolist(), granularity="matrix")) == [[[1, 1, 1, 0]]]
    turned = source_of(model, base, nan_policy="zero")
    assert list(turned.map(lambda piece: piece.rows.content.view(np.float32).tolist(), granularity="matrix")) == [
        [1, 1, 1, 0, 1, 1, 1, 1]
    ]


def test_a_file_that_shrinks_while_blocks_of_it_are_read_is_an_error_too(tmp_path: Path) -> None:
    base, model = write_pair(tmp_path, {"w": torch.ones(4, 4)})
    (piece,) = source_of(base, model).map(lambda piece: piece, granularity="matrix")
    assert isinstance(piece.models, StoredModels)
    os.truncate(model.path / "model.safetensors", 100)
    with pytest.raises(InputChanged, match=r"model: model\.safetensors ends before byte"):
        piece.models.read_block(0, slice(0, 4), slice(0, 2), 4)


def test_one_bare_file_is_read_where_it_lies(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "expert.safetensors")
    path = tmp_path / "expert.safetensors"
    checkpoint = LocalCheckpoint(id="bare", path=path, manifest=import_checkpoint(path, ignore))
    assert source_of(checkpoint, checkpoint).read("w", 0, 2).finetuned.tolist() == [[1, 1]]


def test_tensors_are_cut_anywhere_or_between_rows() -> None:
    def runs(shape: tuple[int, ...], *, by_rows: bool) -> list[tuple[int, int]]:
        tensor = MergedTensor("w", shape, 0, None, ())
        source = CheckpointSource(base=None, models=(), merged={"w": tensor}, weights=(), piece_elements=5, threads=1)
        return [(run.offset, run.n_elements) for run in source.cut("w", "row" if by_rows else "element")]

    assert runs((3, 4), by_rows=False) == [(0, 5), (5, 5), (10, 2)]
    assert runs((3, 4), by_rows=True) == [(0, 4), (4, 4), (8, 4)]
    assert runs((6, 2), by_rows=True) == [(0, 4), (4, 4), (8, 4)]  # two rows at a time
    assert runs((2, 7), by_rows=True) == [(0, 7), (7, 7)]  # a row is never cut
    assert runs((12,), by_rows=True) == [(0, 12)]  # below two dimensions it is one row
    assert runs((), by_rows=True) == [(0, 1)]
    assert runs((0, 4), by_rows=True) == []
    assert runs((4, 0), by_rows=True) == []


@pytest.mark.parametrize(("dtype", "n_models", "part"), [("bfloat16", 3, 1 << 16), ("float32", 8, 1 << 14)])
def test_kernels_read_as_much_at_a_time_as_the_second_cache_holds(
    dtype: str, n_models: int, part: int, tmp_path: Path
) -> None:
    tensors = {"w": torch.zeros(300, 1000, dtype=getattr(torch, dtype))}
    source = source_of(*(write_checkpoint(tmp_path / str(model), tensors) for model in range(1 + n_models)))
    rows = source.rows("w", 0, 300_000)
    item = tensors["w"].element_size()
    assert rows.part == part
    assert len(rows.content) >= (1 + n_models) * part * item
    assert len(rows.content) <= 1.2 * (1 << 19)


@pytest.mark.parametrize(("n_bytes", "part"), [(2, LARGEST_PART), (4 * 33, LEAST_PART), (4 * 1000, LEAST_PART)])
def test_parts_have_a_least_and_a_largest_size(n_bytes: int, part: int) -> None:
    assert part_of(n_bytes) == part


def test_the_disk_is_told_of_rows_before_kernels_read_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, model = write_pair(tmp_path, {"w": torch.ones(3, 5).bfloat16()})
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr("workers.checkpoints.source.want", lambda _, *where: asked.append(where))
    source_of(base, model).rows("w", 4, 7)
    begins = [checkpoint.manifest.tensors[0].begin for checkpoint in (base, model)]
    assert asked == [(begin + 2 * 4, 2 * 7) for begin in begins]
