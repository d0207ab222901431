"""The laws of every method that are about files, through the pipeline that jobs run.

T2 to the bit; T5 tensors that are not merged are the base's, bit for bit; T6 names, shapes and dtypes are kept and the
files can be read; T7 neither pieces, nor shards, nor threads show in the bytes.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.domain.catalog import MethodCard, load_catalog
from app.domain.checkpoints import LocalCheckpoint
from tests.workers.files import FileMerge, read_tensors, write_checkpoint
from tests.workers.memory import MemoryMerge
from tests.workers.models import draw_normal
from workers.catalog import load_method

CARDS = [card for card in load_catalog().methods if card.produces != "adapter"]
every_method = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
INTEGERS = torch.arange(7).view(1, 7)
FLAGS = torch.tensor([True, False, True])


def _base_for(card: MethodCard, base: LocalCheckpoint) -> LocalCheckpoint | None:
    return None if card.base_model == "unused" else base


def _draw(card: MethodCard, seed: int = 5) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    base, models = draw_normal(seed, min(max(2, card.min_models), card.max_models or 2))
    # large enough to be cut, and with rows that a cut must not split
    generator = torch.Generator().manual_seed(seed)
    for tensors in (base, *models):
        tensors["large"] = torch.randn(37, 61, generator=generator)
    return base, models


def _write(
    folder: Path, base: dict[str, Tensor], models: Sequence[dict[str, Tensor]], *, n_shards: int = 1
) -> tuple[LocalCheckpoint, list[LocalCheckpoint]]:
    written = [
        write_checkpoint(folder / f"checkpoint-{index}", tensors, n_shards=n_shards)
        for index, tensors in enumerate((base, *models))
    ]
    return written[0], written[1:]


def _in_memory(card: MethodCard, written: Sequence[LocalCheckpoint]) -> MemoryMerge:
    """Return the merge in memory, its random draws keyed by the contents of the files."""
    keys = tuple(model.manifest.weights_digest for model in written)
    return MemoryMerge(load_method(card.name), model_keys=keys)


@every_method
def test_files_hold_what_the_method_gives_in_memory(card: MethodCard, tmp_path: Path) -> None:
    base, models = _draw(card)
    written_base, written = _write(tmp_path, base, models)
    FileMerge(card.name)(_base_for(card, written_base), written, tmp_path / "out")
    expected = _in_memory(card, written)(base, models)
    found = read_tensors(tmp_path / "out")
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@every_method
def test_t2_models_equal_to_the_base_give_the_base_to_the_bit(card: MethodCard, tmp_path: Path) -> None:
    base, models = _draw(card)
    base["zeros"] = torch.tensor([0.0, -0.0, 0.0, -0.0])
    written_base, written = _write(tmp_path, base, [base for _ in models])
    merged = FileMerge(card.name)(_base_for(card, written_base), written, tmp_path / "out")
    assert merged.weights_digest == written_base.manifest.weights_digest


@every_method
def test_t5_integers_and_excluded_tensors_are_the_references_to_the_bit(card: MethodCard, tmp_path: Path) -> None:
    if card.copies:
        pytest.skip("the card says that every tensor is a copy")
    base, models = _draw(card)
    for tensors in (base, *models):
        tensors.update(positions=INTEGERS, flags=FLAGS)
    written_base, written = _write(tmp_path, base, models)
    reference = models[0] if card.base_model == "unused" else base
    FileMerge(card.name, exclude=("bias", "con*"))(_base_for(card, written_base), written, tmp_path / "out")
    found = read_tensors(tmp_path / "out")
    for name in ("positions", "flags", "bias", "conv"):
        assert torch.equal(found[name], reference[name])
        assert found[name].dtype == reference[name].dtype
    if card.produces == "dense" and card.name != "lorahub":  # what tasks share, or a search begins at, may be the base
        assert not torch.equal(found["large"], reference["large"])


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_t6_names_shapes_and_dtypes_are_kept_and_files_can_be_read(
    card: MethodCard, dtype: torch.dtype, tmp_path: Path
) -> None:
    base, models = _draw(card)
    base, *models = [{name: tensor.to(dtype) for name, tensor in model.items()} for model in (base, *models)]
    written_base, written = _write(tmp_path, base, models)
    FileMerge(card.name)(_base_for(card, written_base), written, tmp_path / "out")
    found = read_tensors(tmp_path / "out")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in base.items()
    }


@every_method
@pytest.mark.parametrize("output_dtype", ["float32", "float16", "bfloat16"])
def test_t6_the_output_dtype_is_the_one_asked_for(card: MethodCard, output_dtype: str, tmp_path: Path) -> None:
    base, models = _draw(card)
    written_base, written = _write(tmp_path, base, models)
    FileMerge(card.name, output_dtype=output_dtype)(_base_for(card, written_base), written, tmp_path / "out")
    expected = _in_memory(card, written)(base, models)
    for name, tensor in read_tensors(tmp_path / "out").items():
        assert torch.equal(tensor, expected[name].to(getattr(torch, output_dtype))), name


@every_method
@pytest.mark.parametrize(
    ("threads", "chunk_elements", "shard_bytes"),
    [(1, 1, 5_000_000_000), (2, 7, 5_000_000_000), (4, 64, 1_000), (3, 100_000, 4_000)],
)
def test_t7_neither_pieces_nor_shards_nor_threads_show(
    card: MethodCard, threads: int, chunk_elements: int, shard_bytes: int, tmp_path: Path
) -> None:
    base, models = _draw(card)
    written_base, written = _write(tmp_path, base, models)
    reference = _base_for(card, written_base)
    whole = FileMerge(card.name)(reference, written, tmp_path / "whole")
    cut = FileMerge(card.name, threads=threads, chunk_elements=chunk_elements, shard_bytes=shard_bytes)
    assert cut(reference, written, tmp_path / "cut").weights_digest == whole.weights_digest


@every_method
def test_t7_how_the_inputs_are_sharded_does_not_show(card: MethodCard, tmp_path: Path) -> None:
    base, models = _draw(card)
    written_base, written = _write(tmp_path / "one", base, models)
    sharded_base, sharded = _write(tmp_path / "three", base, models, n_shards=3)
    whole = FileMerge(card.name)(_base_for(card, written_base), written, tmp_path / "whole")
    cut = FileMerge(card.name)(_base_for(card, sharded_base), sharded, tmp_path / "cut")
    assert cut.weights_digest == whole.weights_digest


@every_method
def test_the_same_recipe_gives_the_same_files(card: MethodCard, tmp_path: Path) -> None:
    base, models = _draw(card)
    written_base, written = _write(tmp_path, base, models)
    first, second = (
        FileMerge(card.name, seed=3)(_base_for(card, written_base), written, tmp_path / name) for name in ("a", "b")
    )
    assert first.digest == second.digest
