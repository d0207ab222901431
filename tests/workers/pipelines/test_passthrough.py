"""Passthrough on files: bytes as they were, configs that count the layers, models that transformers can open."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import NotFinite
from app.domain.passthrough import Layer
from tests.workers.files import FileMerge, ignore, read_tensors, write_checkpoint
from tests.workers.pipelines.merging import MergeOf
from workers.catalog import load_method
from workers.checkpoints.layer_config import with_layers
from workers.pipelines.importing import import_checkpoint

Tensors = dict[str, Tensor]


def llama(folder: Path, *, n_layers: int, seed: int = 0, **changes: Any) -> LocalCheckpoint:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=n_layers, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, **changes,
    )  # fmt: skip
    return saved(LlamaForCausalLM(config), folder)


def saved(model: Any, folder: Path) -> LocalCheckpoint:
    model.save_pretrained(folder)
    return LocalCheckpoint(id=folder.name, path=folder, manifest=import_checkpoint(folder, ignore))


def slices(*runs: tuple[Any, ...]) -> dict[str, Any]:
    sources = [
        {"model": model, "layer_range": [begin, end], **(more[0] if more else {})} for model, begin, end, *more in runs
    ]
    return {"slices": [{"sources": [source]} for source in sources]}


def blocks(seed: int, n_blocks: int = 3, dtype: torch.dtype = torch.float32) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed.w": (5, 4), "head.w": (4,), **{f"h.{n}.{part}": (4, 4) for n in range(n_blocks) for part in "ab"}}
    floats = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return {**floats, **{f"h.{n}.ids": torch.arange(3) + n for n in range(n_blocks)}}


# --- bytes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("n_shards", [1, 3])
def test_all_layers_of_one_model_are_that_model_to_the_byte(dtype: torch.dtype, n_shards: int, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "a", blocks(1, dtype=dtype), n_shards=n_shards)
    manifest = FileMerge("passthrough", slices((0, 0, 3)))(None, [model], tmp_path / "out")
    assert manifest.weights_digest == model.manifest.weights_digest


@pytest.mark.parametrize("shard_bytes", [100, 5_000_000_000])
@pytest.mark.parametrize("threads", [1, 3])
def test_slices_are_copies_whatever_the_files(shard_bytes: int, threads: int, tmp_path: Path) -> None:
    tensors = blocks(1), blocks(2, 4)
    models = [write_checkpoint(tmp_path / f"m{at}", one, n_shards=2) for at, one in enumerate(tensors)]
    merge = FileMerge("passthrough", slices((0, 0, 2), (1, 1, 4)), shard_bytes=shard_bytes, threads=threads)
    manifest = merge(None, models, tmp_path / "out")
    found = read_tensors(tmp_path / "out")
    for n, (model, layer) in enumerate([(0, 0), (0, 1), (1, 1), (1, 2), (1, 3)]):
        for part in ("a", "b", "ids"):
            assert torch.equal(found[f"h.{n}.{part}"], tensors[model][f"h.{layer}.{part}"])
    assert torch.equal(found["embed.w"], tensors[0]["embed.w"])
    assert torch.equal(found["head.w"], tensors[1]["head.w"])
    assert manifest == import_checkpoint(tmp_path / "out", ignore)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_factor_is_applied_in_float32_and_rounded(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = blocks(1, dtype=dtype)
    parameters = slices((0, 0, 2), (0, 1, 3, {"scaling": [{"match": "*.b", "factor": 0.3}]}))
    FileMerge("passthrough", parameters)(None, [write_checkpoint(tmp_path / "a", tensors)], tmp_path / "out")
    found = read_tensors(tmp_path / "out")
    assert torch.equal(found["h.3.b"], (tensors["h.2.b"].float() * torch.tensor(0.3)).to(dtype))
    assert torch.equal(found["h.3.a"], tensors["h.2.a"])
    assert torch.equal(found["h.3.ids"], tensors["h.2.ids"])


def test_the_output_dtype_is_that_of_all_floating_tensors(tmp_path: Path) -> None:
    tensors = blocks(1)
    merge = FileMerge("passthrough", slices((0, 0, 1)), output_dtype="bfloat16")
    merge(None, [write_checkpoint(tmp_path / "a", tensors)], tmp_path / "out")
    found = read_tensors(tmp_path / "out")
    assert torch.equal(found["h.0.a"], tensors["h.0.a"].bfloat16())
    assert found["h.0.ids"].dtype == torch.int64


def test_a_product_that_is_not_finite_is_named(tmp_path: Path) -> None:
    tensors = blocks(1)
    tensors["h.1.a"][2, 3] = torch.inf
    model = write_checkpoint(tmp_path / "a", tensors)
    scaled = slices((0, 1, 2, {"scaling": [{"match": "*.a", "factor": 2.0}]}))
    with pytest.raises(NotFinite, match=r"'h.0.a', 'h.1.a' of models\[0\] times 2, is inf at flat index 11"):
        FileMerge("passthrough", scaled)(None, [model], tmp_path / "out")
    FileMerge("passthrough", slices((0, 1, 2)))(None, [model], tmp_path / "copied")  # a copy judges nothing


# --- configs ------------------------------------------------------------------------------------------------------


def test_a_llama_of_more_layers_opens_and_computes(tmp_path: Path) -> None:
    first, second = llama(tmp_path / "a", n_layers=3), llama(tmp_path / "b", n_layers=4, seed=1)
    FileMerge("passthrough", slices((0, 0, 3), (1, 2, 4)))(None, [first, second], tmp_path / "out")
    loaded: Any = LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    model, info = loaded
    assert model.config.num_hidden_layers == 5
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


def test_copies_of_layers_that_add_nothing_change_nothing(tmp_path: Path) -> None:
    source = llama(tmp_path / "a", n_layers=3)
    silent = {"scaling": [{"match": "*o_proj*", "factor": 0.0}, {"match": "*down_proj*", "factor": 0.0}]}
    FileMerge("passthrough", slices((0, 0, 2), (0, 1, 2, silent), (0, 2, 3)))(None, [source], tmp_path / "out")
    before, after = (LlamaForCausalLM.from_pretrained(path) for path in (source.path, tmp_path / "out"))
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert after.config.num_hidden_layers == 4
    assert torch.equal(before(tokens).logits, after(tokens).logits)


def test_tied_embeddings_stay_one(tmp_path: Path) -> None:
    models = [llama(tmp_path / f"m{at}", n_layers=2, seed=at, tie_word_embeddings=True) for at in range(2)]
    manifest = FileMerge("passthrough", slices((0, 0, 2), (1, 0, 2)))(None, models, tmp_path / "out")
    assert manifest.tied == models[0].manifest.tied
    loaded: Any = LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    _, info = loaded
    assert not info["missing_keys"]


def test_a_bert_of_fewer_layers_opens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=4, num_attention_heads=2)
    source = saved(BertModel(config), tmp_path / "a")
    FileMerge("passthrough", slices((0, 0, 1), (0, 3, 4)))(source, [source], tmp_path / "out")
    loaded: Any = BertModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    model, info = loaded
    assert model.config.num_hidden_layers == 2
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def config_after(
    document: dict[str, Any], others: list[dict[str, Any]] | None = None
) -> tuple[dict[str, Any], list[str]]:
    layers = [Layer(model=0, index=0), Layer(model=0, index=2), Layer(model=1, index=1)]
    changed, warnings = with_layers(json.dumps(document).encode(), layers, 4, others or [document, document])
    return json.loads(changed), warnings


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "n_layers", "num_layers"])
def test_the_count_is_rewritten_where_it_counted_the_layers(key: str) -> None:
    assert config_after({key: 4, "hidden_size": 4}) == ({key: 3, "hidden_size": 4}, [])
    assert config_after({"text_config": {key: 4}}) == ({"text_config": {key: 3}}, [])


def test_lists_of_layers_follow_the_layers() -> None:
    mine = {"num_hidden_layers": 4, "layer_types": ["a", "b", "c", "d"], "eos_token_id": [1, 2, 3, 4]}
    theirs = {"num_hidden_layers": 2, "layer_types": ["x", "y"]}
    found, warnings = config_after(mine, [mine, theirs])
    assert found == {"num_hidden_layers": 3, "layer_types": ["a", "c", "y"], "eos_token_id": [1, 2, 3, 4]}
    assert warnings == []


def test_a_config_that_does_not_count_the_layers_is_said() -> None:
    found, warnings = config_after({"depth": 4})
    assert found == {"depth": 4}
    assert "does not say that the model had 4 layers" in warnings[0]


def test_entries_that_name_layers_are_said() -> None:
    _, warnings = config_after({"num_hidden_layers": 4, "max_window_layers": 2, "mlp_only_layers": []})
    assert warnings == ["config.json: max_window_layers is 2 as before; check whether it fits the new layers."]


def test_the_report_carries_the_warnings_and_counts_copies(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "a", blocks(1))
    merge = MergeOf(load_method("passthrough"), {"parameters": slices((0, 0, 2))}).plan(None, model)
    _, report = merge.run(tmp_path / "out")
    warnings: Any = report["warnings"]
    assert (report["n_merged"], report["n_copied"]) == (0, len(merge.plan.tensors))
    assert any("does not say that the model had 3 layers" in str(warning) for warning in warnings)
