"""Merges with fused kernels and without give the same files, and the same words when something is wrong."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import NotFinite
from tests.workers.files import FileMerge, ignore, write_checkpoint
from tests.workers.models import draw_normal
from tests.workers.pipelines.merging import MergeOf
from workers.catalog import load_method
from workers.checkpoints.source import CheckpointSource, Run
from workers.fusion import Rows
from workers.numerics import fused

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("average", {}),
    ("task_arithmetic", {}),
    ("ties", {}),
    ("ties", {"trim_scope": "tensor", "density": 0.5}),
    ("breadcrumbs", {}),
    ("breadcrumbs", {"scope": "global", "elect_signs": True}),
    ("della", {"rescale": "l1"}),
    ("della_linear", {"density_spread": 0.2}),
    ("model_stock", {"scope": "row"}),
    ("arcee_fusion", {}),
]


@pytest.fixture(autouse=True)
def _kernels() -> None:
    assert fused.load()


def write(folder: Path, dtypes: list[torch.dtype], **special: Tensor) -> tuple[LocalCheckpoint, list[LocalCheckpoint]]:
    """Write a base and three models, each of the next dtype."""
    base, models = draw_normal(1, 3)
    generator = torch.Generator().manual_seed(2)
    for tensors in (base, *models):
        tensors["large"] = torch.randn(300, 1700, generator=generator)
    written = [
        write_checkpoint(
            folder / f"{index}",
            {name: tensor.to(dtypes[index % len(dtypes)]) for name, tensor in tensors.items()}
            | (special if index == 2 else {}),
        )
        for index, tensors in enumerate((base, *models))
    ]
    return written[0], written[1:]


@pytest.mark.parametrize(("method", "parameters"), METHODS)
@pytest.mark.parametrize("dtypes", [[torch.bfloat16], [torch.float32, torch.float16, torch.float64]], ids=str)
@pytest.mark.parametrize("output_dtype", [None, "float16"])
def test_files_are_the_same_without_kernels(  # noqa: PLR0913
    method: str,
    parameters: dict[str, Any],
    dtypes: list[torch.dtype],
    output_dtype: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, models = write(tmp_path, dtypes)
    models = models[: load_method(method).card.max_models]
    weights = [] if load_method(method).card.weights == "unused" else [1.0, -0.5, 0.7]
    merge = FileMerge(method, parameters, weights=weights, output_dtype=output_dtype)
    seen: set[str] = set()
    read_rows = CheckpointSource.read_rows

    def watch(source: CheckpointSource, run: Run) -> Rows:
        seen.add(run.tensor.name)
        return read_rows(source, run)

    monkeypatch.setattr(CheckpointSource, "read_rows", watch)
    fast = merge(base, models, tmp_path / "fast")
    assert seen == {tensor.name for tensor in base.manifest.tensors if tensor.n_elements}

    seen.clear()
    monkeypatch.setattr(fused, "_loaded", [])
    monkeypatch.setattr(fused, "load", lambda: False)
    slow = merge(base, models, tmp_path / "slow")
    assert not seen
    assert fast.digest == slow.digest


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "dare_linear"])
def test_models_with_their_own_densities_are_the_same_without_kernels(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, models = write(tmp_path, [torch.bfloat16])
    merge = FileMerge(method, of_models=[{"density": 0.1}, {}, {"density": 1.0}])
    fast = merge(base, models, tmp_path / "fast")
    monkeypatch.setattr(fused, "_loaded", [])
    monkeypatch.setattr(fused, "load", lambda: False)
    assert merge(base, models, tmp_path / "slow").digest == fast.digest
    assert FileMerge(method)(base, models, tmp_path / "plain").weights_digest != fast.weights_digest


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "breadcrumbs"])
def test_a_number_that_is_none_is_named(method: str, tmp_path: Path) -> None:
    broken = torch.ones(300, 1700, dtype=torch.bfloat16)
    broken[7, 5] = -torch.inf
    base, models = write(tmp_path, [torch.bfloat16], large=broken)
    with pytest.raises(NotFinite, match=r"Tensor 'large' of models\[1\] \(2\) is -inf at flat index 11905,"):
        FileMerge(method)(base, models, tmp_path / "out")


def test_what_the_output_cannot_hold_is_named(tmp_path: Path) -> None:
    large = torch.full((300, 1700), 3e38)
    base, models = write(tmp_path, [torch.float32], large=large)
    merge = FileMerge("task_arithmetic", {"scaling_coefficient": 2.0})
    with pytest.raises(NotFinite, match=r"The merged tensor 'large' is inf at flat index 0 in torch\.float32"):
        merge(base, models, tmp_path / "out")


def test_what_is_no_number_counts_as_zero_if_the_recipe_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = torch.ones(300, 1700, dtype=torch.bfloat16)
    broken[7, 5] = torch.nan
    _, models = write(tmp_path, [torch.bfloat16], large=broken)
    plan = MergeOf(load_method("average"), {"parameters": {"normalize": True}, "nan_policy": "zero"})
    merge = plan.plan(None, *models)
    fast, _ = merge.run(tmp_path / "fast", ignore)
    monkeypatch.setattr(fused, "_loaded", [])
    slow, _ = merge.run(tmp_path / "slow", ignore)
    assert fast.weights_digest == slow.weights_digest


def test_a_variance_never_falls_below_zero(tmp_path: Path) -> None:
    names = "norm.running_var"
    base = write_checkpoint(tmp_path / "base", {names: torch.ones(3)})
    model = write_checkpoint(tmp_path / "model", {names: torch.zeros(3)})
    merge = FileMerge("task_arithmetic", {"scaling_coefficient": 2.0})
    manifest = merge(base, [model], tmp_path / "out")
    assert manifest.weights_digest == model.manifest.weights_digest
