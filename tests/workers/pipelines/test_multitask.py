"""Multitask merges through the pipeline: what is written, what a materialization gives, what faults leave behind."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from app.domain.checkpoints import LocalCheckpoint, Manifest, TensorSpec
from app.domain.errors import IncompatibleCheckpoints, InputChanged, JobError, NotFinite, OutOfDisk
from app.domain.jobs import Progress
from app.domain.plans import known_ranks
from app.domain.recipes import PinnedStep, RecipeModel, pin
from tests.workers.files import FileMerge, ignore, read_tensors, write_checkpoint
from tests.workers.multitask import read_tasks
from tests.workers.peft_folders import RANK, Lora, draw_base, draw_modules, fuse, write_adapter
from tests.workers.pipelines.merging import MergeOf, PlannedMerge
from tests.workers.pipelines.test_merge_faults import largest_file
from workers.catalog import load_method
from workers.checkpoints.patch_files import PatchWriter, WrittenPatch
from workers.checkpoints.reader import TensorReader
from workers.pipelines.importing import import_checkpoint
from workers.pipelines.materialize import materialize, materialize_all

Tensors = dict[str, Tensor]


def draw(seed: int, n_elements: int = 63) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(n_elements, generator=generator), "m": torch.randn(16, 16, generator=generator)}


def write(folder: Path, *models: Tensors) -> list[LocalCheckpoint]:
    return [write_checkpoint(folder / f"m{index}", tensors) for index, tensors in enumerate(models)]


def plan(
    method: str, checkpoints: Sequence[LocalCheckpoint], exclude: tuple[str, ...] = (), **parameters: Any
) -> PlannedMerge:
    base, *models = checkpoints
    named = [RecipeModel(**pin(model).model_dump(), task=f"task-{index}") for index, model in enumerate(models)]
    changes = {"models": tuple(named), "parameters": parameters, "exclude": exclude}
    return MergeOf(load_method(method), changes).plan(base, *models)


def run(merge: PlannedMerge, output: Path, **options: Any) -> LocalCheckpoint:
    manifest, _ = merge.run(output, **options)
    return LocalCheckpoint(id="artifact", path=output, manifest=manifest)


def task_of(artifact: LocalCheckpoint, task: str, output: Path) -> Manifest:
    output.mkdir()
    return materialize(artifact, task, output, ignore)


# --- what is written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["post_pruning", "emr"])
def test_the_manifest_lists_every_file_and_the_patches_in_the_models_order(method: str, tmp_path: Path) -> None:
    artifact = run(plan(method, write(tmp_path, draw(0), draw(1), draw(2))), tmp_path / "out")

    manifest = artifact.manifest
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert found == [entry.path for entry in manifest.files]
    assert [(patch.task, patch.file) for patch in manifest.patches] == [
        ("task-0", "patches/task-0.safetensors"),
        ("task-1", "patches/task-1.safetensors"),
    ]
    assert manifest.patch_base == ("base.safetensors" if method == "emr" else None)


def test_the_shared_model_is_an_ordinary_checkpoint_folder(tmp_path: Path) -> None:
    artifact = run(plan("emr", write(tmp_path, draw(0), draw(1), draw(2))), tmp_path / "out")

    shutil.rmtree(tmp_path / "out" / "patches")
    dense = import_checkpoint(tmp_path / "out", ignore)

    assert (dense.kind, dense.weights_digest) == ("dense", artifact.manifest.weights_digest)


def test_the_plan_has_room_for_what_is_written(tmp_path: Path) -> None:
    checkpoints = write(tmp_path, *(draw(seed, 5000) for seed in range(4)))
    for method in ("post_pruning", "emr", "tsv_c", "bitdelta", "peru_lora", "localize_and_stitch_dataless"):
        given: dict[str, Any] = {"density": 0.3} if method in ("post_pruning", "localize_and_stitch_dataless") else {}
        merge = plan(method, checkpoints, **given)
        artifact = run(merge, tmp_path / method)
        written = artifact.manifest.size_bytes
        assert written <= merge.plan.bytes_written + 10_000  # recipe and card
        assert merge.plan.bytes_written <= 2 * written


def test_the_plan_has_room_for_indices_that_are_not_bits_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = plan("post_pruning", write(tmp_path, *(draw(seed, 50_000) for seed in range(5))), density=0.5)
    finish, seen = PatchWriter.finish, list[int]()

    def measured(self: PatchWriter, metadata: Mapping[str, str]) -> list[WrittenPatch]:
        seen.append(sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()))
        return finish(self, metadata)

    monkeypatch.setattr(PatchWriter, "finish", measured)
    artifact = run(merge, tmp_path / "out")
    assert artifact.manifest.size_bytes < seen[0] <= merge.plan.disk_bytes


def test_a_tensor_of_another_shape_stays_behind_with_a_warning(tmp_path: Path) -> None:
    def with_head(seed: int, n: int) -> Tensors:
        return draw(seed) | {"head": torch.ones(n, 2)}

    checkpoints = write(tmp_path, with_head(0, 3), with_head(1, 3), with_head(2, 4))
    _, report = plan("post_pruning", checkpoints, ("head",)).run(tmp_path / "out")
    warnings: Any = report["warnings"]
    assert warnings[-1:] == [
        "Tensor head of task task-1 has another shape or dtype than the shared one, which its patch leaves in place."
    ]


def test_tied_names_are_patched_under_both(tmp_path: Path) -> None:
    def tied(value: float) -> Tensors:
        return {name: torch.full((3, 2), value) for name in ("model.embed_tokens.weight", "lm_head.weight")}

    artifact = run(plan("post_pruning", write(tmp_path, tied(1.0), tied(3.0)), density=0.5), tmp_path / "out")
    task_of(artifact, "task-0", tmp_path / "task")
    for tensor in read_tensors(tmp_path / "task").values():
        assert tensor.tolist() == [[3.0, 3.0], [3.0, 1.0], [1.0, 1.0]]  # floor(.5 · 6) entries


# --- materialized -------------------------------------------------------------------------------------------------


def test_a_materialized_folder_says_what_it_was_made_of_and_is_what_an_import_finds(tmp_path: Path) -> None:
    artifact = run(plan("emr", write(tmp_path, draw(0), draw(1), draw(2))), tmp_path / "out")

    manifest = task_of(artifact, "task-1", tmp_path / "task")

    assert manifest == import_checkpoint(tmp_path / "task", ignore)
    record = json.loads((tmp_path / "task" / "materialization.json").read_text())
    assert (record["task"], record["artifact"]["content_digest"]) == ("task-1", artifact.manifest.digest)
    assert artifact.manifest.digest in (tmp_path / "task" / "README.md").read_text()
    assert not (tmp_path / "task" / "recipe.json").exists()


def test_progress_counts_the_bytes_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.pipelines.progress.INTERVAL_SECONDS", 0.0)
    artifact = run(plan("emr", write(tmp_path, draw(0), draw(1))), tmp_path / "out")
    reports: list[Progress] = []
    (tmp_path / "task").mkdir()
    materialize(artifact, "task-0", tmp_path / "task", reports.append)
    assert reports[-1].done == reports[-1].total == 4 * (63 + 256)
    assert {report.stage for report in reports} == {"applying the patch of task-0"}


@pytest.mark.parametrize("method", ["emr", "post_pruning", "bitdelta", "tsv_c"])
def test_models_of_several_tasks_are_those_of_each_alone_and_the_shared_weights_are_read_once(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = run(plan(method, write(tmp_path, draw(0), draw(1), draw(2), draw(3))), tmp_path / "out")
    alone = {task: task_of(artifact, task, tmp_path / f"alone-{task}") for task in ("task-2", "task-0", "task-1")}
    folders = {task: tmp_path / f"together-{task}" for task in alone}
    read: list[str] = []
    read_bytes = TensorReader.read_bytes

    def watch(reader: TensorReader, tensor: TensorSpec, offset: int, out: memoryview) -> None:
        read.append(tensor.name)
        read_bytes(reader, tensor, offset, out)

    monkeypatch.setattr(TensorReader, "read_bytes", watch)
    for folder in folders.values():
        folder.mkdir()
    reports: list[Progress] = []
    assert materialize_all(artifact, folders, reports.append) == tuple(alone.values())
    assert sorted(read) == sorted(tensor.name for tensor in artifact.manifest.tensors)
    assert {report.stage for report in reports} == {"applying the patches of task-2, task-0, task-1"}
    for task, folder in folders.items():
        for path in folder.iterdir():
            assert path.read_bytes() == (tmp_path / f"alone-{task}" / path.name).read_bytes()


@pytest.mark.parametrize("method", ["emr", "post_pruning", "bitdelta", "tsv_c", "peru_lora"])
def test_runs_do_not_show_in_a_model(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = run(plan(method, write(tmp_path, draw(0), draw(1), draw(2))), tmp_path / "out")
    whole = task_of(artifact, "task-1", tmp_path / "whole")
    monkeypatch.setattr("workers.checkpoints.patch_runs.RUN_ELEMENTS", 16)
    assert task_of(artifact, "task-1", tmp_path / "cut") == whole


def test_where_one_of_several_models_fails_nothing_is_left(tmp_path: Path) -> None:
    base = {"a": torch.ones(2, 2), "w": torch.full((2, 2), 60_000.0)}
    good = {"a": base["a"], "w": base["w"] - 1.0}
    bad = {"a": base["a"], "w": base["w"] + torch.tensor([[5_000.0, 5_000.0], [5_000.0, -60_000.0]])}
    checkpoints = write(tmp_path, base, good, bad)
    manifest = FileMerge("bitdelta", output_dtype="float16")(checkpoints[0], checkpoints[1:], tmp_path / "out")
    artifact = LocalCheckpoint(id="artifact", path=tmp_path / "out", manifest=manifest)
    folders = {task: tmp_path / task for task in ("model-0", "model-1")}
    for folder in folders.values():
        folder.mkdir()
    with pytest.raises(NotFinite, match="Tensor 'w' of task 'model-1' holds a number that is not finite"):
        materialize_all(artifact, folders, ignore)
    assert [list(folder.iterdir()) for folder in folders.values()] == [[], []]


def test_an_unknown_task_and_files_of_two_artifacts_are_refused(tmp_path: Path) -> None:
    one = run(plan("post_pruning", write(tmp_path / "1", draw(0), draw(1))), tmp_path / "one")
    other = run(plan("post_pruning", write(tmp_path / "2", draw(5), draw(1))), tmp_path / "other")
    with pytest.raises(JobError, match="has no patch for task 'task-7'; it has: task-0"):
        task_of(one, "task-7", tmp_path / "none")
    patch = tmp_path / "one" / "patches" / "task-0.safetensors"
    patch.write_bytes((other.path / "patches" / "task-0.safetensors").read_bytes())
    with pytest.raises(InputChanged, match="a patch applies to weights"):
        task_of(one, "task-0", tmp_path / "mixed")
    assert list((tmp_path / "mixed").iterdir()) == []


def test_a_model_that_does_not_fit_its_dtype_fails_by_name(tmp_path: Path) -> None:
    base = {"w": torch.full((2, 2), 60_000.0)}
    model = {"w": base["w"] + torch.tensor([[5_000.0, 5_000.0], [5_000.0, -60_000.0]])}
    checkpoints = write(tmp_path, base, model)
    manifest = FileMerge("bitdelta", output_dtype="float16")(checkpoints[0], checkpoints[1:], tmp_path / "out")
    artifact = LocalCheckpoint(id="artifact", path=tmp_path / "out", manifest=manifest)
    with pytest.raises(NotFinite, match="Tensor 'w' of task 'model-0' holds a number that is not finite"):
        task_of(artifact, "model-0", tmp_path / "task")
    with pytest.raises(NotFinite, match="patch of task 'model-0' for tensor 'w'"):
        FileMerge("post_pruning", {"density": 1.0}, output_dtype="float16")(
            checkpoints[0], write(tmp_path / "wide", {"w": torch.full((2, 2), 70_000.0)}), tmp_path / "pruned"
        )
    assert list((tmp_path / "pruned").iterdir()) == []


# --- added --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["breadcrumbs", "task_arithmetic"])
def test_models_added_one_by_one_are_within_two_units_each_of_all_at_once(
    method: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    models = [{name: tensor.to(dtype) for name, tensor in draw(seed, 2000).items()} for seed in range(5)]
    checkpoints = write(tmp_path, *models)
    given: dict[str, Any] = {"scaling_coefficient": 0.3}
    together = run(plan(method, checkpoints, **given), tmp_path / "together")
    so_far = run(plan(method, checkpoints[:2], **given), tmp_path / "first")
    for index in range(2, 5):
        merge = plan(method, [checkpoints[0], checkpoints[index]], **given)
        so_far = run(merge, tmp_path / f"added-{index}", onto=so_far)
    expected, found = read_tensors(together.path), read_tensors(so_far.path)
    largest = max(float(tensor.abs().max()) for tensor in (*models[0].values(), *expected.values()))
    unit = torch.finfo(dtype).eps * largest
    for name, tensor in expected.items():
        assert ((found[name].double() - tensor.double()).abs() <= 3 * 2 * unit).all()


def test_a_model_that_changes_nothing_leaves_the_result_to_the_bit(tmp_path: Path) -> None:
    base = {"w": torch.tensor([1.0, -0.0, 0.1])}
    model = {"w": torch.tensor([2.0, -0.0, 0.3])}
    checkpoints = write(tmp_path, base, model)
    before = run(plan("task_arithmetic", checkpoints, scaling_coefficient=0.3), tmp_path / "before")
    merge = plan("task_arithmetic", [checkpoints[0], checkpoints[0]], scaling_coefficient=0.3)
    after = run(merge, tmp_path / "after", onto=before)
    assert after.manifest.weights_digest == before.manifest.weights_digest


def test_patches_over_other_weights_are_not_taken_over(tmp_path: Path) -> None:
    one = run(plan("post_pruning", write(tmp_path / "1", draw(0), draw(1))), tmp_path / "one")
    merge = plan("post_pruning", write(tmp_path / "2", draw(5), draw(2)))
    with pytest.raises(IncompatibleCheckpoints, match="The patches of artifact apply to weights"):
        run(merge, tmp_path / "out", onto=one)
    assert list((tmp_path / "out").iterdir()) == []


# --- faults -------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_while_patches_are_written_leaves_nothing(tmp_path: Path) -> None:
    merge = plan("post_pruning", write(tmp_path, draw(0, 50_000), draw(1, 50_000)), density=0.99)
    with largest_file(203_000), pytest.raises((OutOfDisk, OSError)):  # the weights fit, the patch does not
        merge.run(tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_disk_that_is_too_full_for_a_model_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = run(plan("post_pruning", write(tmp_path, draw(0), draw(1))), tmp_path / "out")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(OutOfDisk, match="and 100 are free"):
        task_of(artifact, "task-0", tmp_path / "task")
    assert list((tmp_path / "task").iterdir()) == []


def test_the_bits_of_a_patch_can_be_loaded_by_the_safetensors_library(tmp_path: Path) -> None:
    run(plan("emr", write(tmp_path, draw(0), draw(1), draw(2))), tmp_path / "out")
    base = load_file(tmp_path / "out" / "base.safetensors")
    patch = load_file(tmp_path / "out" / "patches" / "task-0.safetensors")
    assert torch.equal(base["m::values"], draw(0)["m"])
    assert (patch["a::mask"].dtype, patch["a::mask"].shape) == (torch.uint8, (8,))


# --- adapters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("peru_lora", {"rank": RANK}), ("post_pruning", {"density": 1.0}), ("peru_fft", {"density": 1.0})],
)
def test_adapters_are_patched_as_the_dense_models_they_are(
    method: str, parameters: dict[str, Any], tmp_path: Path
) -> None:
    base = write_checkpoint(tmp_path / "base", draw_base())
    adapters = [write_adapter(tmp_path / f"adapter-{index}", draw_modules(index)) for index in range(2)]
    manifest = FileMerge(method, parameters)(base, adapters, tmp_path / "out")
    for index, task in enumerate(read_tasks(tmp_path / "out", manifest)):
        fused = fuse(draw_base(), draw_modules(index))
        for name, tensor in task.items():
            np.testing.assert_allclose(tensor.double().numpy(), fused[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_an_adapter_s_rank_bounds_nothing_behind_a_transform(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", draw_base())
    adapters = [write_adapter(tmp_path / f"adapter-{index}", draw_modules(index)) for index in range(2)]
    manifests = [adapter.manifest for adapter in adapters]
    bare, _ = FileMerge("peru_lora").plan(base, adapters)
    behind, _ = FileMerge("peru_lora", transforms=(PinnedStep(name="awd", version=1, parameters={}),)).plan(
        base, adapters
    )
    assert set(known_ranks(bare, manifests, base.manifest).values()) == {(RANK, RANK)}
    assert known_ranks(behind, manifests, base.manifest) == {}


def test_an_adapter_s_patch_holds_a_quarter_of_its_rank_and_nothing_that_it_leaves_alone(tmp_path: Path) -> None:
    base = write_checkpoint(
        tmp_path / "base", {"conv.weight": torch.randn(20, 10, 3, 3), "other.weight": torch.ones(9)}
    )
    loras = {"conv": Lora(torch.randn(8, 10, 3, 3), torch.randn(20, 8, 1, 1))}
    adapter = write_adapter(tmp_path / "adapter", loras, r=8)
    FileMerge("peru_lora")(base, [adapter], tmp_path / "out")
    patch = load_file(tmp_path / "out" / "patches" / "model-0.safetensors")
    assert {name: tuple(part.shape) for name, part in patch.items()} == {
        "conv.weight::a": (2, 90), "conv.weight::b": (20, 2),
    }  # fmt: skip
