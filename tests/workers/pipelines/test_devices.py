"""What a worker's device is for: whole matrices; whatever has kernels stays where they are, and so do its bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import JobError
from app.domain.recipes import PinnedCheckpoint, PinnedStep, Recipe, RecipeModel
from tests.workers.copies import staged
from tests.workers.files import FileMerge, write_checkpoint
from tests.workers.memory import MemorySource
from tests.workers.models import draw_normal
from workers import contract
from workers.catalog import find_methods, load_method, load_recipe
from workers.contract import RecipeCode, works_on_matrices
from workers.pipelines import merge as merging
from workers.pipelines.program import MergeProgram, prepare
from workers.transport import HOST, Transport

KEY = PinnedCheckpoint(content_digest="c", weights_digest="w")
ELSEWHERE = "cuda:99"
STEP = PinnedStep(name="svc", version=1, parameters={})


def _prepare(method: str, transport: Transport, *post_steps: PinnedStep, **parameters: Any) -> MergeProgram:
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
    return prepare(recipe, load_recipe(recipe), MemorySource(base, models), transport=transport)


def test_no_method_with_kernels_leaves_the_cpu() -> None:
    fused = [method.card for method in find_methods() if method.fused is not contract._fuse_nothing]
    assert len(fused) > 15
    assert not [card.name for card in fused if works_on_matrices(card)]


@pytest.mark.parametrize(
    ("method", "expected"),
    [("average", "host"), ("ties", "host"), ("sce", "host"), ("tsv_m", "there"), ("wudi", "there")],
)
def test_only_what_works_on_matrices_is_bound_to_the_device(method: str, expected: str) -> None:
    transport, _ = staged()
    assert _prepare(method, transport).groups[0].bound.transport is (HOST if expected == "host" else transport)


def test_a_post_step_of_matrices_does_not_take_the_method_along() -> None:
    transport, _ = staged()
    program = _prepare("task_arithmetic", transport, STEP)
    assert program.groups[0].bound.transport is HOST
    assert [step.transport for step in program.post_steps] == [transport]


def test_a_method_of_matrices_inside_another_one_takes_it_along() -> None:
    transport, _ = staged()
    for inside, expected in (("ties", HOST), ("tsv_m", transport)):
        program = _prepare("peru_fft", transport, shared={"method": inside, "version": 1, "parameters": {}})
        bound = program.groups[0].bound
        nested: Any = bound.context.nested["shared"]
        assert (bound.transport, nested.transport) == (expected, expected)
        assert RecipeCode(load_method("peru_fft"), {"shared": load_method(inside)}).uses_device == (inside == "tsv_m")


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("average", {}), ("task_arithmetic", {}), ("ties", {}), ("breadcrumbs", {}), ("model_stock", {}), ("emr", {})],
)
def test_the_files_do_not_depend_on_the_device(method: str, parameters: dict[str, Any], tmp_path: Path) -> None:
    base, *models = _write(tmp_path)
    here, there = (
        FileMerge(method, parameters, device=device)(base, models, tmp_path / device.replace(":", "-"))
        for device in ("cpu", ELSEWHERE)  # which no machine has: whoever asked it for anything would fail
    )
    assert here.files == there.files


def test_a_method_of_matrices_asks_for_the_device(tmp_path: Path) -> None:
    base, *models = _write(tmp_path)
    with pytest.raises(JobError, match=f"The device '{ELSEWHERE}' cannot be used"):
        FileMerge("tsv_m", device=ELSEWHERE)(base, models, tmp_path / "out")
    FileMerge("tsv_m")(base, models, tmp_path / "on-cpu")
    assert (tmp_path / "on-cpu" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("method", "parameters", "steps"),
    [
        ("tsv_m", {}, ()),
        ("iso_cts", {}, ()),
        ("wudi", {"steps": 3}, ()),
        ("dc_merge", {}, ()),
        ("opcm", {}, ()),
        ("tsv_c", {}, ()),
        ("peru_fft", {"shared": {"method": "tsv_m"}}, ()),
        ("task_arithmetic", {}, (STEP,)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_way_to_a_device_changes_no_byte(  # noqa: PLR0913
    method: str,
    parameters: dict[str, Any],
    steps: tuple[PinnedStep, ...],
    dtype: torch.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, *models = _write(tmp_path, dtype)
    merge = FileMerge(method, parameters, post_steps=steps, threads=3)
    here = merge(base, models, tmp_path / "here")
    transport, copies = staged(n_slots=2, slot_elements=50)
    monkeypatch.setattr(merging, "open_transport", lambda _device: transport)
    there = merge(base, models, tmp_path / "there")
    assert here.files == there.files
    assert copies.events.count("in") > 20
    assert "out" in copies.events
    assert transport.ring.n_free == 2


def _write(folder: Path, dtype: torch.dtype = torch.float32) -> list[LocalCheckpoint]:
    base, models = draw_normal(1, 2)
    return [
        write_checkpoint(folder / f"{index}", {name: tensor.to(dtype) for name, tensor in tensors.items()})
        for index, tensors in enumerate((base, *models))
    ]
