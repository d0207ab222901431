"""Adapters merged into an adapter: the spaces factors and concat, what is refused, and what is written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from app.domain.catalog import load_catalog
from app.domain.checkpoints import CheckpointKind, LocalCheckpoint
from app.domain.errors import IncompatibleCheckpoints, Invalid, NotFinite
from app.domain.jobs import Progress
from tests.workers.adapter_files import AdapterMerge, read_fused
from tests.workers.files import write_checkpoint
from tests.workers.memory import MemoryMerge
from tests.workers.peft_folders import ALPHA, RANK, Lora, draw_base, draw_modules, fuse, write_adapter
from workers.catalog import load_method

BASE = draw_base()
SCALING = ALPHA / RANK
FACTOR_CARDS = [
    card for card in load_catalog().methods if card.produces == "dense" and "factors" in card.adapter_spaces
]


@pytest.fixture
def base(tmp_path: Path) -> LocalCheckpoint:
    return write_checkpoint(tmp_path / "base", BASE)


def write_all(folder: Path, n_models: int = 2, **config: Any) -> list[LocalCheckpoint]:
    return [write_adapter(folder / f"adapter-{index}", draw_modules(index), **config) for index in range(n_models)]


def test_concat_is_the_exact_sum_of_the_updates(base: LocalCheckpoint, tmp_path: Path) -> None:
    adapters = write_all(tmp_path)
    merge = AdapterMerge("task_arithmetic", {"scaling_coefficient": 0.5}, weights=(2.0, -1.0), space="concat")
    merged, report = merge.report(base, adapters, tmp_path / "out")
    found = read_fused(merged, base)
    first, second = (fuse(BASE, draw_modules(index)) for index in range(2))
    for name, tensor in found.items():
        expected = first[name] - 0.5 * (second[name] - BASE[name].double().numpy())  # 0.5 · 2 and 0.5 · −1
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6, atol=1e-6, err_msg=name)
    assert set(report["ranks"].values()) == {2 * RANK}


def test_concat_takes_adapters_of_different_ranks_modules_and_scalings(base: LocalCheckpoint, tmp_path: Path) -> None:
    first = write_adapter(tmp_path / "first", {"model.dense": draw_modules(1)["model.dense"]})
    second = write_adapter(tmp_path / "second", draw_modules(2, rank=2), r=2, lora_alpha=5, use_rslora=True)
    merged, report = AdapterMerge("average", space="concat").report(base, [first, second], tmp_path / "out")
    assert report["ranks"]["model.dense"] == RANK + 2
    assert report["ranks"]["model.conv"] == 2
    assert "leave 4 modules as they are" in report["warnings"][0]
    one = fuse(BASE, {"model.dense": draw_modules(1)["model.dense"]})
    other = fuse(BASE, draw_modules(2, rank=2), scaling=5 / 2**0.5)
    for name, tensor in read_fused(merged, base).items():
        np.testing.assert_allclose(tensor.numpy(), (one[name] + other[name]) / 2, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("card", FACTOR_CARDS, ids=lambda card: card.name)
def test_every_method_merges_factors_as_it_merges_tensors(card: Any, base: LocalCheckpoint, tmp_path: Path) -> None:
    n_models = min(max(2, card.min_models), card.max_models or 2)
    adapters = write_all(tmp_path, n_models)
    merged = AdapterMerge(card.name, space="factors")(base, adapters, tmp_path / "out")
    found = load_file(merged.path / "adapter_model.safetensors")
    models = [
        {
            f"{module}.lora_{role}": factor.reshape(len(factor), -1)
            for module, lora in draw_modules(index).items()
            for role, factor in (("A", lora.a), ("B", lora.b))
        }
        for index in range(n_models)
    ]
    zeros = {name: torch.zeros_like(tensor) for name, tensor in models[0].items()}
    keys = tuple(adapter.manifest.weights_digest for adapter in adapters)
    expected = MemoryMerge(load_method(card.name), model_keys=keys)(zeros, models)
    for name, tensor in expected.items():
        module, _, role = name.rpartition(".lora_")
        kind, end = ("lora_embedding_", "") if module == "model.embed" else ("lora_", ".weight")
        wanted = tensor * SCALING if role == "B" else tensor  # the scaling is in B
        stored = found[f"base_model.model.{module}.{kind}{role}{end}"]
        assert torch.equal(stored.reshape(wanted.shape), wanted), name


@pytest.mark.parametrize(
    ("second", "config", "words"),
    [
        (draw_modules(2, rank=2), {"r": 2}, r"rank 3, scaling 2, rank 2, scaling 3.*'delta' or 'concat'"),
        (draw_modules(2), {"lora_alpha": 9}, r"rank 3, scaling 2, rank 3, scaling 3"),
        ({"model.dense": draw_modules(2)["model.dense"]}, {}, r"rank 3, scaling 2, none"),
    ],
)
def test_factors_that_do_not_correspond_are_refused(
    second: dict[str, Lora], config: dict[str, Any], words: str, base: LocalCheckpoint, tmp_path: Path
) -> None:
    adapters = [write_adapter(tmp_path / "a", draw_modules(1)), write_adapter(tmp_path / "b", second, **config)]
    with pytest.raises(IncompatibleCheckpoints, match=words):
        AdapterMerge("average", space="factors")(base, adapters, tmp_path / "out")


def test_whole_tensors_are_refused_with_the_way_out(base: LocalCheckpoint, tmp_path: Path) -> None:
    full = {"model.norm.weight": torch.ones(5)}
    adapters = [write_adapter(tmp_path / "a", draw_modules(1), full=full), *write_all(tmp_path, 1)]
    with pytest.raises(
        IncompatibleCheckpoints, match=r"models\[0\] holds 1 whole tensors .*'model.norm.weight'.*'delta'"
    ):
        AdapterMerge("average", space="concat").plan(base, adapters)


def test_linearized_factors_are_sent_to_their_own_method(base: LocalCheckpoint, tmp_path: Path) -> None:
    adapters = [write_adapter(tmp_path / f"{index}", draw_modules(index), start=draw_modules(7)) for index in range(2)]
    with pytest.raises(IncompatibleCheckpoints, match="linearized_lora"):
        AdapterMerge("average", space="factors")(base, adapters, tmp_path / "out")


def test_include_and_exclude_name_the_base_s_tensors(base: LocalCheckpoint, tmp_path: Path) -> None:
    adapters = write_all(tmp_path)
    merge = AdapterMerge("average", space="concat", changes={"exclude": ("*.embed.*", "model.c*")})
    _, report = merge.report(base, adapters, tmp_path / "out")
    assert sorted(report["ranks"]) == ["model.dense", "model.square", "model.turned"]
    with pytest.raises(Invalid, match="leave none of the 5 adapted tensors"):
        AdapterMerge("average", space="concat", changes={"exclude": ("*",)}).plan(base, adapters)


def test_the_plan_lays_out_what_is_written(base: LocalCheckpoint, tmp_path: Path) -> None:
    adapters = write_all(tmp_path)
    merge = AdapterMerge("average", space="concat")
    _, plan = merge.plan(base, adapters)
    merged = merge(base, adapters, tmp_path / "out")
    assert [tensor.spec for tensor in plan.tensors] == sorted(merged.manifest.tensors, key=lambda spec: spec.begin)
    assert plan.files[0].size_bytes == (merged.path / "adapter_model.safetensors").stat().st_size


def test_the_config_says_what_peft_needs(base: LocalCheckpoint, tmp_path: Path) -> None:
    first = write_adapter(
        tmp_path / "a", {"model.dense": draw_modules(1)["model.dense"]}, task_type="FEATURE_EXTRACTION"
    )
    second = write_adapter(tmp_path / "b", draw_modules(2))
    merged = AdapterMerge("average", space="concat")(base, [first, second], tmp_path / "out")
    config = json.loads((merged.path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.conv", "model.dense", "model.embed", "model.square", "model.turned"]
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (RANK, RANK, False)
    assert config["rank_pattern"] == config["alpha_pattern"] == {"model.dense": 2 * RANK}
    assert config["fan_in_fan_out"] is False  # as the square weight lies; the turned one shows by its shape
    assert config["task_type"] == "FEATURE_EXTRACTION"
    assert merged.manifest.kind is CheckpointKind.ADAPTER


def test_equal_recipes_give_equal_files(base: LocalCheckpoint, tmp_path: Path) -> None:
    adapters = write_all(tmp_path)
    merge = AdapterMerge("ties", {"density": 0.5}, space="factors")
    digests = {merge(base, adapters, tmp_path / f"out-{index}").manifest.digest for index in range(2)}
    assert len(digests) == 1


def test_the_output_dtype_is_the_one_asked_for(base: LocalCheckpoint, tmp_path: Path) -> None:
    merge = AdapterMerge("average", space="concat", changes={"output_dtype": "bfloat16"})
    merged = merge(base, write_all(tmp_path), tmp_path / "out")
    assert {spec.dtype for spec in merged.manifest.tensors} == {"BF16"}


def test_a_nan_is_named_or_set_to_zero(base: LocalCheckpoint, tmp_path: Path) -> None:
    lora = draw_modules(1)["model.dense"]
    broken = {"model.dense": Lora(lora.a.index_fill(0, torch.tensor([1]), float("nan")), lora.b)}
    adapters = [write_adapter(tmp_path / "a", broken)]
    with pytest.raises(NotFinite, match=r"lora_A.weight' of a holds NaN"):
        AdapterMerge("average", space="concat")(base, adapters, tmp_path / "out")
    AdapterMerge("average", space="concat", changes={"nan_policy": "zero"})(base, adapters, tmp_path / "zeroed")


def test_overrides_in_the_space_factors_match_factors(base: LocalCheckpoint, tmp_path: Path) -> None:
    adapters = write_all(tmp_path)
    changes = {"overrides": ({"match": "*.lora_A", "weights": (1.0, 0.0)},)}
    merged, report = AdapterMerge("average", space="factors", changes=changes).report(base, adapters, tmp_path / "out")
    found = load_file(merged.path / "adapter_model.safetensors")
    assert torch.equal(found["base_model.model.model.dense.lora_A.weight"], draw_modules(0)["model.dense"].a)
    assert [group["weights"] for group in report["groups"]] == [[1.0, 0.0], [1.0, 1.0]]
    wrong = {"overrides": ({"match": "model.dense.weight", "weights": (1.0, 0.0)},)}
    with pytest.raises(Invalid, match=r"'model.dense.weight' matches none of the 10 merged tensors"):
        AdapterMerge("average", space="factors", changes=wrong).plan(base, adapters)


def test_overrides_of_stacked_updates_are_the_sum_with_other_numbers_there(
    base: LocalCheckpoint, tmp_path: Path
) -> None:
    adapters = write_all(tmp_path)
    changes = {
        "overrides": (
            {"match": "model.d*", "parameters": {"scaling_coefficient": 2.0}},
            {"match": "*.square.*", "weights": (0.0, -1.0)},
        )
    }
    merge = AdapterMerge("task_arithmetic", {"scaling_coefficient": 0.5}, space="concat", changes=changes)
    merged, report = merge.report(base, adapters, tmp_path / "out")
    first, second = (fuse(BASE, draw_modules(index)) for index in range(2))
    for name, tensor in read_fused(merged, base).items():
        start = BASE[name].double().numpy()
        one, other = {"model.dense.weight": (2.0, 2.0), "model.square.weight": (0.0, -0.5)}.get(name, (0.5, 0.5))
        expected = start + one * (first[name] - start) + other * (second[name] - start)
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6, atol=1e-6, err_msg=name)
    assert [(group["parameters"], group["weights"], group["tensors"]) for group in report["groups"]] == [
        ({"scaling_coefficient": 0.5}, [1.0, 1.0], ["model.conv.weight", "model.embed.weight", "model.turned.weight"]),
        ({"scaling_coefficient": 2.0}, [1.0, 1.0], ["model.dense.weight"]),
        ({"scaling_coefficient": 0.5}, [0.0, -1.0], ["model.square.weight"]),
    ]


def test_an_override_that_matches_no_adapted_tensor_is_refused_with_the_plan(
    base: LocalCheckpoint, tmp_path: Path
) -> None:
    changes = {"overrides": ({"match": "model.norm.weight", "weights": (1.0, 0.0)},)}
    with pytest.raises(Invalid, match=r"'model\.norm\.weight' matches none of the 5 merged tensors"):
        AdapterMerge("average", space="concat", changes=changes).plan(base, write_all(tmp_path))


@pytest.mark.parametrize("field", ["transforms", "post_steps"])
def test_steps_are_refused_where_no_merge_set_is_seen(field: str, base: LocalCheckpoint, tmp_path: Path) -> None:
    changes = {field: ({"name": "awd", "version": 1, "parameters": {}},)}
    with pytest.raises(Invalid, match=f"{field} are not possible where the result is an adapter"):
        AdapterMerge("average", space="concat", changes=changes).plan(base, write_all(tmp_path))


def test_the_report_tells_what_the_method_inside_has_found(base: LocalCheckpoint, tmp_path: Path) -> None:
    adapters = write_all(tmp_path)
    inside = {"merge": {"method": "awd_task_arithmetic"}}
    _, report = AdapterMerge("core_space", inside).report(base, adapters, tmp_path / "out")
    assert len(report["found"]["redundancy"]["coefficients"]) == 2
    assert "groups" not in report
    changes = {"overrides": ({"match": "*.dense.*", "parameters": {"tolerance": 0.5}},)}
    _, report = AdapterMerge("core_space", inside, changes=changes).report(base, adapters, tmp_path / "again")
    assert len(report["found"]["redundancy"]) == len(report["groups"]) == 2
    assert [group["parameters"]["tolerance"] for group in report["groups"]] == [1e-5, 0.5]


@pytest.mark.parametrize(
    ("method", "n_times"), [("knots", 2), ("core_space", 2), ("peft_combination", 1), ("average", 1)]
)
def test_progress_moves_with_each_matrix(
    method: str, n_times: int, base: LocalCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.pipelines.progress.INTERVAL_SECONDS", 0.0)
    reports: list[Progress] = []
    merge = AdapterMerge(method, space="concat" if method == "average" else None, on_progress=reports.append)
    merge(base, write_all(tmp_path), tmp_path / "out")
    merging = [report for report in reports if report.stage == "merging"]
    begin, total = merging[0].done, merging[0].total
    n_bytes = 2 * sum(4 * (lora.a.numel() + lora.b.numel()) for lora in draw_modules(0).values())
    assert (begin, total) == (n_bytes, (1 + n_times) * n_bytes)
    assert len(merging) == 1 + 5 * n_times  # five modules, each decomposed and then merged
    assert [report.done for report in merging] == sorted(report.done for report in merging)
    assert (merging[-1].done, merging[-1].eta_seconds) == (total, 0.0)
    assert merging[0].eta_seconds is None  # how fast they are decomposed, reading has not told
    assert all(report.eta_seconds is not None for report in merging[1:])


def test_an_adapter_of_zeros_keeps_a_module_for_peft(base: LocalCheckpoint, tmp_path: Path) -> None:
    zeros = {"model.dense": Lora(torch.zeros(RANK, 7), torch.zeros(5, RANK))}
    adapters = [write_adapter(tmp_path / "a", zeros)]
    merged = AdapterMerge("peft_combination", {"combination_type": "svd"})(base, adapters, tmp_path / "out")
    assert all(torch.equal(tensor, BASE[name]) for name, tensor in read_fused(merged, base).items())
