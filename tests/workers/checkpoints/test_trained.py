"""What a fine-tuning writes has the base's files, names, dtypes and shards; only what was trained differs."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertModel, Dinov2Config, Dinov2Model

from app.domain.errors import ModelNotRunnable
from tests.workers import tiny_bert
from workers.checkpoints.model import load_encoder
from workers.checkpoints.trained import write_trained

CPU = torch.device("cpu")
QUERY = "encoder.layer.0.attention.self.query.weight"


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def train_and_write(base: Path, output: Path, *, parameter: str = QUERY) -> tuple[str, ...]:
    """Add 1 to one parameter of the encoder in `base` and write it to `output`."""
    output.mkdir()
    checkpoint = tiny_bert.local(base)
    module = load_encoder(checkpoint, CPU).module
    with torch.no_grad():
        module.get_parameter(parameter).add_(1)
    return write_trained(checkpoint, module, output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_only_the_trained_tensor_differs_and_dtypes_stay(tmp_path: Path, dtype: torch.dtype) -> None:
    base = tiny_bert.make_encoder(tmp_path / "base", dtype=dtype)
    assert train_and_write(base, tmp_path / "out") == (QUERY,)
    before, after = weights(base), weights(tmp_path / "out")
    assert list(after) == list(before)
    for name, value in after.items():
        assert value.dtype == dtype
        assert torch.equal(value, (before[name].float() + 1).to(dtype) if name == QUERY else before[name])


def test_names_with_a_prefix_and_the_head_stay_as_the_files_have_them(tmp_path: Path) -> None:
    base = tiny_bert.make_language_model(tmp_path / "base")
    assert train_and_write(base, tmp_path / "out") == (f"bert.{QUERY}",)
    before, after = weights(base), weights(tmp_path / "out")
    assert sorted(after) == sorted(before)
    assert any(name.startswith("cls.") for name in after)
    assert [name for name in after if not torch.equal(after[name], before[name])] == [f"bert.{QUERY}"]


def test_names_in_memory_other_than_in_the_file_are_turned_back(tmp_path: Path) -> None:
    config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
    Dinov2Model(config).save_pretrained(tmp_path / "base")
    checkpoint = tiny_bert.local(tmp_path / "base")
    module = Dinov2Model.from_pretrained(tmp_path / "base")
    in_memory = next(name for name, _ in module.named_parameters() if name.endswith("q_proj.weight"))
    with torch.no_grad():
        module.get_parameter(in_memory).add_(1)
    (tmp_path / "out").mkdir()
    changed = write_trained(checkpoint, module, tmp_path / "out")
    assert changed == ("encoder.layer.0.attention.attention.query.weight",)


def test_shards_and_their_index_stay(tmp_path: Path) -> None:
    base = tiny_bert.make_language_model(tmp_path / "base", max_shard_size="1KB")
    train_and_write(base, tmp_path / "out")
    before, after = tiny_bert.local(base).manifest, tiny_bert.local(tmp_path / "out").manifest
    assert [(t.name, t.file, t.dtype, t.shape) for t in after.tensors] == [
        (t.name, t.file, t.dtype, t.shape) for t in before.tensors
    ]
    assert after.weights_digest != before.weights_digest


def test_metadata_config_and_tokenizer_travel_along_and_nothing_is_left_behind(tmp_path: Path) -> None:
    base = tiny_bert.make_encoder(tmp_path / "base")
    (base / "README.md").write_text("about the base model")
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text("{}")
    train_and_write(base, tmp_path / "out")
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    expected = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "1_Pooling/config.json"}
    assert files == expected
    assert (tmp_path / "out/config.json").read_bytes() == (base / "config.json").read_bytes()
    with safe_open(tmp_path / "out/model.safetensors", framework="pt") as written:
        assert written.metadata() == {"format": "pt"}


def test_a_pooler_that_the_files_have_not_is_not_written(tmp_path: Path) -> None:
    base = tmp_path / "base"
    BertModel(tiny_bert.make_config(), add_pooling_layer=False).save_pretrained(base)
    tiny_bert.make_tokenizer().save_pretrained(base)
    train_and_write(base, tmp_path / "out")
    assert sorted(weights(tmp_path / "out")) == sorted(weights(base))


def test_a_weight_without_a_place_in_the_files_is_refused(tmp_path: Path) -> None:
    base = tiny_bert.make_encoder(tmp_path / "base")
    checkpoint = tiny_bert.local(base)
    module = load_encoder(checkpoint, CPU).module
    module.register_parameter("extra", torch.nn.Parameter(torch.zeros(2)))
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelNotRunnable, match=r"1 tensors of the trained BertModel have no place .* extra"):
        write_trained(checkpoint, module, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
