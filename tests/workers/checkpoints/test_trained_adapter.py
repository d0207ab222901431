"""Trained adapters on architectures whose files have other names than memory."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import ViTConfig, ViTModel

from app.domain.adapters import place
from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import CheckpointInvalid, IncompatibleCheckpoints
from app.domain.lora_configs import BASE_NAMES_FILE, parse_base_names
from tests.workers import tiny_bert
from tests.workers.training.trainables import make_bert
from workers.checkpoints.trained import names_in_files
from workers.checkpoints.trained_adapter import describe, write_trained_adapter
from workers.model_contract import LoraResult
from workers.pipelines.fusing import fuse_adapter
from workers.training.injection import begin, factors, inject, read_update
from workers.training.parameters import LoraParameters

# PEFT asks transformers by a name that is going away
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> LocalCheckpoint:
    folder = tmp_path_factory.mktemp("vit")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ViTModel(
            ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, image_size=4,
                      patch_size=2),
            add_pooling_layer=False,
        )  # fmt: skip
    model.save_pretrained(folder)
    return tiny_bert.local(folder)


def load(checkpoint: LocalCheckpoint) -> ViTModel:
    loaded = ViTModel.from_pretrained(checkpoint.path, add_pooling_layer=False)
    loaded.train(mode=False)
    return loaded.requires_grad_(requires_grad=False)


def make_adapter(model: ViTModel) -> LoraResult:
    layers = inject(model, LoraParameters(rank=2, alpha=2))
    begin(layers, base_key="base", init_seed=0, start=None)
    with torch.no_grad():
        for layer in layers.values():
            factors(layer)[1].fill_(0.5)
    return LoraResult(tuple(read_update(name, layer) for name, layer in layers.items()), alpha=2.0, use_rslora=False)


def test_an_adapter_is_folded_into_the_base_s_files_and_loaded_by_peft(vit: LocalCheckpoint, tmp_path: Path) -> None:
    model = load(vit)
    adapter = make_adapter(model)
    names = names_in_files(model, [update.module for update in adapter.updates])
    assert names == {update.module: name for update, name in zip(adapter.updates, sorted(names.values()), strict=True)}
    assert set(names.values()) <= {tensor.name.removesuffix(".weight") for tensor in vit.manifest.tensors}

    folder = tmp_path / "adapter"
    folder.mkdir()
    write_trained_adapter(adapter, folder, names)

    pixels = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    expected = model(pixels).last_hidden_state
    by_peft = PeftModel.from_pretrained(load(vit), folder)
    assert torch.equal(by_peft(pixels).last_hidden_state, expected)
    folded = fuse_adapter(tiny_bert.local(folder), vit, tmp_path / "fused")
    assert set(load_file(folded.path / "model.safetensors")) == {tensor.name for tensor in vit.manifest.tensors}
    torch.testing.assert_close(load(folded)(pixels).last_hidden_state, expected, rtol=0, atol=1e-5)


def test_without_its_names_such_an_adapter_has_no_place(vit: LocalCheckpoint) -> None:
    adapter = make_adapter(load(vit))
    with pytest.raises(IncompatibleCheckpoints, match="the base model has no tensor"):
        place(describe(adapter, {}), vit.manifest)


def test_modules_that_files_call_alike_are_not_told() -> None:
    assert names_in_files(make_bert(), ["encoder.layer.0.output.dense"]) == {}


def test_names_that_are_no_names_are_refused() -> None:
    with pytest.raises(CheckpointInvalid, match=f"{BASE_NAMES_FILE}: found 3 at 'a', expected a name"):
        parse_base_names({"a": 3})
