"""Extraction: Eckart and Young's error, exactness at full rank, what is kept whole."""

from pathlib import Path

import numpy as np
import pytest
import torch

from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import Invalid
from tests.workers.adapter_files import AdapterMerge, read_fused
from tests.workers.files import write_checkpoint
from tests.workers.peft_folders import draw_base, draw_modules, fuse, write_adapter

BASE = draw_base()


@pytest.fixture
def base(tmp_path: Path) -> LocalCheckpoint:
    return write_checkpoint(tmp_path / "base", BASE)


@pytest.fixture
def model(tmp_path: Path) -> LocalCheckpoint:
    return write_checkpoint(tmp_path / "model", draw_base(1))


def test_full_rank_gives_the_model_back(base: LocalCheckpoint, model: LocalCheckpoint, tmp_path: Path) -> None:
    adapter = AdapterMerge("lora_extract", {"rank": 64, "embeddings": "lora"})(base, [model], tmp_path / "out")
    for name, tensor in read_fused(adapter, base).items():
        torch.testing.assert_close(tensor, draw_base(1)[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_error_is_that_of_the_best_approximation(
    rank: int, base: LocalCheckpoint, model: LocalCheckpoint, tmp_path: Path
) -> None:
    adapter, report = AdapterMerge("lora_extract", {"rank": rank}).report(base, [model], tmp_path / "out")
    found = read_fused(adapter, base)
    for name in ("model.dense.weight", "model.conv.weight", "model.square.weight", "model.turned.weight"):
        change = (draw_base(1)[name].double() - BASE[name].double()).flatten(1).numpy()
        error = np.linalg.norm((draw_base(1)[name].double() - found[name].double()).flatten(1).numpy())
        sigma = np.linalg.svd(change, compute_uv=False)
        assert error == pytest.approx(np.sqrt(np.sum(sigma[rank:] ** 2)), rel=1e-5, abs=1e-6)  # Eckart–Young
        kept = np.sum(sigma[:rank] ** 2) / np.sum(sigma**2)
        assert report["captured_energy"][name] == pytest.approx(kept, rel=1e-6)


def test_what_is_no_matrix_is_kept_whole(base: LocalCheckpoint, model: LocalCheckpoint, tmp_path: Path) -> None:
    adapter = AdapterMerge("lora_extract", {"rank": 1})(base, [model], tmp_path / "out")
    found = read_fused(adapter, base)
    for name in ("model.embed.weight", "model.norm.weight", "model.scale", "model.dense.bias"):
        assert torch.equal(found[name], draw_base(1)[name]), name
    config = adapter.manifest.adapter
    assert config is not None
    assert config.modules_to_save == ("model", "model.embed", "model.norm") or config.modules_to_save == (
        "model.embed",
        "model.norm",
    )


def test_skipped_tensors_stay_the_base_s(base: LocalCheckpoint, model: LocalCheckpoint, tmp_path: Path) -> None:
    parameters = {"rank": 1, "embeddings": "skip", "vectors": "skip"}
    adapter, report = AdapterMerge("lora_extract", parameters).report(base, [model], tmp_path / "out")
    found = read_fused(adapter, base)
    skipped = ["model.dense.bias", "model.embed.weight", "model.norm.weight", "model.scale"]
    assert report["skipped"] == skipped
    assert all(torch.equal(found[name], BASE[name]) for name in skipped)


def test_extracting_from_a_fused_adapter_finds_its_rank(base: LocalCheckpoint, tmp_path: Path) -> None:
    modules = draw_modules(3)
    fused = {name: torch.from_numpy(array).float() for name, array in fuse(BASE, modules).items()}
    model = write_checkpoint(tmp_path / "fused", fused)
    parameters = {"rank": 6, "relative_tolerance": 1e-4, "embeddings": "lora"}
    adapter, report = AdapterMerge("lora_extract", parameters).report(base, [model], tmp_path / "out")
    assert report["ranks"] == dict.fromkeys(modules, 3)
    for name, tensor in read_fused(adapter, base).items():
        torch.testing.assert_close(tensor, fused[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["fused", "adapter"])
def test_by_default_no_more_components_are_kept_than_a_model_has(
    kind: str, base: LocalCheckpoint, tmp_path: Path
) -> None:
    modules = draw_modules(3, rank=2)
    fused = {name: torch.from_numpy(array).float() for name, array in fuse(BASE, modules, scaling=3.0).items()}
    models = {
        "fused": lambda: write_checkpoint(tmp_path / "model", fused),
        "adapter": lambda: write_adapter(tmp_path / "model", modules, r=2),
    }
    adapter, report = AdapterMerge("lora_extract", {"embeddings": "lora"}).report(
        base, [models[kind]()], tmp_path / "out"
    )
    assert report["ranks"] == dict.fromkeys(modules, 2)
    assert min(report["captured_energy"][f"{name}.weight"] for name in modules) > 1 - 1e-9
    for name, tensor in read_fused(adapter, base).items():
        torch.testing.assert_close(tensor, fused[name], rtol=1e-5, atol=1e-5)


def test_changes_above_the_rounding_of_weights_are_kept(base: LocalCheckpoint, tmp_path: Path) -> None:
    # a full-rank change of 2⁻¹⁶ of the weights: 256 steps of float32
    generator = torch.Generator().manual_seed(1)
    near = {
        name: tensor * (1 + 2.0**-16 * torch.randn(tensor.shape, generator=generator)) for name, tensor in BASE.items()
    }
    model = write_checkpoint(tmp_path / "near", near)
    _, report = AdapterMerge("lora_extract").report(base, [model], tmp_path / "out")
    assert report["ranks"]["model.dense"] == 5
    assert report["ranks"]["model.square"] == 6


def test_a_change_of_one_last_bit_is_no_component(base: LocalCheckpoint, tmp_path: Path) -> None:
    name = "model.dense.weight"
    changed = BASE[name].clone()
    changed[0, 0] = torch.nextafter(changed[0, 0], torch.tensor(9.0))
    model = write_checkpoint(tmp_path / "one-bit", {**BASE, name: changed})
    adapter, report = AdapterMerge("lora_extract").report(base, [model], tmp_path / "out")
    assert report["captured_energy"][name] == 0.0
    assert torch.equal(read_fused(adapter, base)[name], BASE[name])


def test_an_adapter_is_cut_to_a_lower_rank(base: LocalCheckpoint, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", draw_modules(3))
    cut, report = AdapterMerge("lora_extract", {"rank": 2}, space="delta").report(base, [adapter], tmp_path / "out")
    assert {rank for module, rank in report["ranks"].items() if module != "model.embed"} == {2}
    assert cut.manifest.adapter is not None


def test_a_model_that_is_its_base_has_an_update_of_zero(base: LocalCheckpoint, tmp_path: Path) -> None:
    same = write_checkpoint(tmp_path / "same", BASE)
    adapter = AdapterMerge("lora_extract")(base, [same], tmp_path / "out")
    assert all(torch.equal(tensor, BASE[name]) for name, tensor in read_fused(adapter, base).items())


def test_tensors_may_have_a_rank_and_a_way_of_their_own(
    base: LocalCheckpoint, model: LocalCheckpoint, tmp_path: Path
) -> None:
    changes = {
        "overrides": (
            {"match": "*.dense.weight", "parameters": {"rank": 3}},
            {"match": "*.embed.*", "parameters": {"embeddings": "lora"}},
            {"match": "*.norm.*", "parameters": {"vectors": "skip"}},
        )
    }
    merge = AdapterMerge("lora_extract", {"rank": 1}, changes=changes)
    adapter, report = merge.report(base, [model], tmp_path / "out")
    ranks = {"model.conv": 1, "model.dense": 3, "model.embed": 1, "model.square": 1, "model.turned": 1}
    assert report["ranks"] == ranks
    assert report["skipped"] == ["model.norm.weight"]
    assert [group["parameters"]["rank"] for group in report["groups"] if "model.dense.weight" in group["tensors"]] == [
        3
    ]
    alone, _ = AdapterMerge("lora_extract", {"rank": 3}).report(base, [model], tmp_path / "alone")
    name = "model.dense.weight"
    assert torch.equal(read_fused(adapter, base)[name], read_fused(alone, base)[name])


def test_gpt2_weights_are_turned(tmp_path: Path) -> None:
    weights = {"h.0.attn.c_attn.weight": torch.randn(4, 12), "h.0.attn.c_proj.weight": torch.randn(4, 4)}
    base = write_checkpoint(tmp_path / "base", {name: torch.zeros_like(tensor) for name, tensor in weights.items()})
    base = base.model_copy(update={"manifest": base.manifest.model_copy(update={"model_type": "gpt2"})})
    model = write_checkpoint(tmp_path / "model", weights)
    adapter = AdapterMerge("lora_extract", {"rank": 4})(base, [model], tmp_path / "out")
    shapes = {spec.name: spec.shape for spec in adapter.manifest.tensors}
    assert shapes["base_model.model.h.0.attn.c_attn.lora_B.weight"] == (12, 4)
    assert adapter.manifest.adapter is not None
    assert adapter.manifest.adapter.fan_in_fan_out
    for name, tensor in read_fused(adapter, base).items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-5, atol=1e-5)


def test_a_model_without_a_matrix_to_approximate_is_refused(base: LocalCheckpoint, model: LocalCheckpoint) -> None:
    merge = AdapterMerge("lora_extract", changes={"exclude": ("*.weight",)})
    with pytest.raises(Invalid, match="found no matrix or kernel among the 2 tensors that are left"):
        merge.plan(base, [model])
