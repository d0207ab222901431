"""Every method on adapters in the delta space: the bytes of merging the dense models that the adapters make."""

from pathlib import Path

import pytest
import torch

from app.domain.adapters import as_dense
from app.domain.catalog import MethodCard, load_catalog
from app.domain.checkpoints import LocalCheckpoint
from tests.workers.files import FileMerge, write_checkpoint
from tests.workers.peft_folders import draw_base, draw_modules, write_adapter
from workers.checkpoints.adapters import AdapterReader
from workers.checkpoints.reader import TensorReader

CARDS = [card for card in load_catalog().methods if "delta" in card.adapter_spaces and card.produces == "dense"]


def _write_fused(folder: Path, adapter: LocalCheckpoint, base: LocalCheckpoint) -> LocalCheckpoint:
    with TensorReader(base) as files, AdapterReader(adapter, files) as reader:
        tensors = {}
        for spec in as_dense(adapter.manifest, base.manifest).tensors:
            tensors[spec.name] = torch.empty(spec.n_elements)
            reader.read_floats(spec, 0, tensors[spec.name])
            tensors[spec.name] = tensors[spec.name].view(spec.shape)
    return write_checkpoint(folder, tensors)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
@pytest.mark.parametrize("chunk_elements", [None, 5])
def test_merging_adapters_is_merging_the_dense_models_they_make(
    card: MethodCard, chunk_elements: int | None, tmp_path: Path
) -> None:
    base = write_checkpoint(tmp_path / "base", draw_base())
    full = {"model.norm.weight": torch.arange(5.0)}
    n_models = min(max(2, card.min_models), card.max_models or 2)
    adapters = [
        write_adapter(tmp_path / f"adapter-{index}", draw_modules(index), full=full if index else {})
        for index in range(n_models)
    ]
    fused = [_write_fused(tmp_path / f"fused-{index}", adapter, base) for index, adapter in enumerate(adapters)]
    mixed = [*adapters[:-1], fused[-1]]
    merge = FileMerge(card.name, chunk_elements=chunk_elements)
    digests = {
        # random draws are keyed by what the models are called, so they must be called the same
        merge(base, _called_alike(models), tmp_path / f"out-{index}").weights_digest
        for index, models in enumerate((adapters, fused, mixed))
    }
    assert len(digests) == 1


def _called_alike(models: list[LocalCheckpoint]) -> list[LocalCheckpoint]:
    return [
        model.model_copy(update={"manifest": model.manifest.model_copy(update={"weights_digest": f"{index}" * 64})})
        for index, model in enumerate(models)
    ]
