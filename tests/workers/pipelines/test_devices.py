"""What a worker's device is for: whole matrices; whatever has kernels stays where they are, and so do its bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.errors import JobError
from app.domain.recipes import PinnedCheckpoint, PinnedStep, Recipe, RecipeModel
from tests.workers.files import FileMerge, read_tensors, write_checkpoint
from tests.workers.memory import MemorySource
from tests.workers.models import draw_normal
from workers import contract
from workers.catalog import find_methods, load_method, load_recipe
from workers.contract import RecipeCode, works_on_matrices
from workers.pipelines.program import MergeProgram, prepare

KEY = PinnedCheckpoint(content_digest="c", weights_digest="w")
ELSEWHERE = "cuda:99"
STEP = PinnedStep(name="svc", version=1, parameters={})


def _prepare(method: str, *post_steps: PinnedStep, **parameters: Any) -> MergeProgram:
    """Return a program whose device is one that holds no numbers."""
    base, models = draw_normal(1, 2)
    card = load_method(method).card
    recipe = Recipe(
        method=method,
        method_version=card.version,
        base_model=KEY,
        models=tuple(RecipeModel(**KEY.model_dump()) for _ in models),
        parameters=parameters,
        post_steps=post_steps,
        shard_bytes=1 << 30,
    )
    return prepare(recipe, load_recipe(recipe), MemorySource(base, models), device=torch.device("meta"))


def test_no_method_with_kernels_leaves_the_cpu() -> None:
    fused = [method.card for method in find_methods() if method.fused is not contract._fuse_nothing]
    assert len(fused) > 15
    assert not [card.name for card in fused if works_on_matrices(card)]


@pytest.mark.parametrize(
    ("method", "device"), [("average", "cpu"), ("ties", "cpu"), ("sce", "cpu"), ("tsv_m", "meta"), ("wudi", "meta")]
)
def test_only_what_works_on_matrices_is_bound_to_the_device(method: str, device: str) -> None:
    assert _prepare(method).groups[0].bound.device.type == device


def test_a_post_step_of_matrices_does_not_take_the_method_along() -> None:
    program = _prepare("task_arithmetic", STEP)
    assert program.groups[0].bound.device.type == "cpu"
    assert [step.device.type for step in program.post_steps] == ["meta"]


def test_a_method_of_matrices_inside_another_one_takes_it_along() -> None:
    methods = {name: load_method(name) for name in ("peru_fft", "ties", "tsv_m")}
    assert not RecipeCode(methods["peru_fft"], nested={"shared": methods["ties"]}).uses_device
    assert RecipeCode(methods["peru_fft"], nested={"shared": methods["tsv_m"]}).uses_device


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("average", {}), ("task_arithmetic", {}), ("ties", {}), ("breadcrumbs", {}), ("model_stock", {}), ("emr", {})],
)
def test_the_files_do_not_depend_on_the_device(method: str, parameters: dict[str, Any], tmp_path: Path) -> None:
    base, models = draw_normal(1, 2)
    written = [write_checkpoint(tmp_path / f"{index}", some) for index, some in enumerate((base, *models))]
    here, there = (
        FileMerge(method, parameters, device=device)(written[0], written[1:], tmp_path / device.replace(":", "-"))
        for device in ("cpu", ELSEWHERE)  # which no machine has: whoever asked it for anything would fail
    )
    assert here.files == there.files


def test_a_method_of_matrices_asks_for_the_device(tmp_path: Path) -> None:
    base, models = draw_normal(1, 2)
    written = [write_checkpoint(tmp_path / f"{index}", some) for index, some in enumerate((base, *models))]
    with pytest.raises(JobError, match=f"The device '{ELSEWHERE}' cannot be used"):
        FileMerge("tsv_m", device=ELSEWHERE)(written[0], written[1:], tmp_path / "out")
    FileMerge("tsv_m")(written[0], written[1:], tmp_path / "on-cpu")
    assert read_tensors(tmp_path / "on-cpu").keys() == base.keys()
