"""Materialize: the dense models of tasks out of a multitask checkpoint: its shared weights with each task's patch.

A run of elements at a time is read, patched and written, for all tasks; equal artifacts give equal bytes.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from app.domain.checkpoints import (
    DTYPE_BYTES,
    CheckpointKind,
    FileEntry,
    LocalCheckpoint,
    Manifest,
    TaskPatch,
    TensorSpec,
    digest_weights,
)
from app.domain.errors import InputChanged, JobError, NotFinite, OutOfDisk
from app.domain.jobs import Progress
from app.domain.plans import PlannedTensor, WeightsPlan, plan_copy
from workers import patches
from workers.checkpoints import config
from workers.checkpoints.companions import copy_companions, write_file, write_index
from workers.checkpoints.finiteness import has_finite_bits
from workers.checkpoints.parallel import one_torch_thread
from workers.checkpoints.patch_files import PatchReader
from workers.checkpoints.patch_runs import cut_runs, read_runs
from workers.checkpoints.patch_spools import TORCH
from workers.checkpoints.reader import TensorReader
from workers.checkpoints.writer import WeightsWriter
from workers.pipelines.progress import ProgressMeter

MATERIALIZATION_FORMAT_VERSION = 1
RECORD_FILE = "materialization.json"
CARD_FILE = "README.md"
VARIANCE_SUFFIX = "running_var"


def materialize(
    checkpoint: LocalCheckpoint, task: str, output: Path, on_progress: Callable[[Progress], None]
) -> Manifest:
    """Write a task's dense model into the empty folder `output` and return its manifest; see materialize_all."""
    return materialize_all(checkpoint, {task: output}, on_progress)[0]


def materialize_all(
    checkpoint: LocalCheckpoint, folders: Mapping[str, Path], on_progress: Callable[[Progress], None]
) -> tuple[Manifest, ...]:
    """Write the dense model of each task into its empty folder; return their manifests in the same order.

    What the tasks share is read once. Surgery modules in a patch are no part of it: whoever runs the model runs them
    too, or has refused them before.
    Raises: JobError for a task that the checkpoint has no patch for; InputChanged for files that are not those of one
        artifact; NotFinite naming the tensor; OutOfDisk. On any error the weight files that were begun are removed.
    """
    manifest = checkpoint.manifest
    chosen = [find_patch(manifest, task) for task in folders]
    plan = plan_copy(manifest)
    _check_room(plan, [*folders.values()])
    n_bytes = sum(tensor.size_bytes for tensor in manifest.tensors)
    meter = ProgressMeter(on_progress, total=len(folders) * n_bytes)
    meter.enter(f"applying the patch{'es' if len(folders) > 1 else ''} of {', '.join(folders)}")
    with TensorReader(checkpoint) as reader, one_torch_thread():
        origin = None if manifest.patch_base is None else PatchReader(checkpoint, manifest.patch_base)
        if origin is not None:
            _check_belongs(origin, checkpoint)
        models = [
            _TaskModel(checkpoint, patch, WeightsWriter(plan, folder))
            for patch, folder in zip(chosen, folders.values(), strict=True)
        ]
        written = _write_weights(plan, models, (reader, origin), meter)
    return tuple(
        _complete(checkpoint, plan, patch, folder, weights)
        for patch, folder, weights in zip(chosen, folders.values(), written, strict=True)
    )


def find_patch(manifest: Manifest, task: str) -> TaskPatch:
    """Return the patch of a task. Raises: JobError with the tasks there are."""
    found = next((patch for patch in manifest.patches if patch.task == task), None)
    if found is None:
        known = ", ".join(patch.task for patch in manifest.patches) or "none"
        raise JobError(f"The checkpoint has no patch for task {task!r}; it has: {known}. Name one of those.")
    return found


class _TaskModel:
    """A task's model, made of one run of the shared weights after the other."""

    def __init__(self, checkpoint: LocalCheckpoint, patch: TaskPatch, writer: WeightsWriter) -> None:
        self.writer = writer
        self.patch = PatchReader(checkpoint, patch.file)
        self._task = patch.task
        _check_belongs(self.patch, checkpoint)

    def write(
        self, target: PlannedTensor, offset: int, run: Tensor, parts: Mapping[str, Tensor], base: Tensor | None
    ) -> None:
        """Turn a run of a shared tensor, from byte `offset` on, into the task's, in place, and write it.

        run, base: [m] in their stored dtypes.
        """
        patches.apply(run, parts, base)
        if patches.is_arithmetic(parts):
            self._check(run, target)
        content = run.view(torch.uint8).numpy().data
        self.writer.place(target, offset, content)
        self.writer.digest(target, content)

    def _check(self, tensor: Tensor, target: PlannedTensor) -> None:
        if target.name.endswith(VARIANCE_SUFFIX):
            tensor.clamp_(min=0.0)
        if not has_finite_bits(tensor):
            raise NotFinite(
                f"Tensor {target.name!r} of task {self._task!r} holds a number that is not finite in {tensor.dtype}; "
                "merge again with a wider output dtype."
            )


def _check_belongs(source: PatchReader, checkpoint: LocalCheckpoint) -> None:
    applies_to = source.metadata.get("applies_to")
    if applies_to != checkpoint.manifest.weights_digest:
        raise InputChanged(
            f"{checkpoint.id}: a patch applies to weights {applies_to}, found {checkpoint.manifest.weights_digest}; "
            "make the artifact again."
        )


def _write_weights(
    plan: WeightsPlan,
    models: Sequence[_TaskModel],
    shared: tuple[TensorReader, PatchReader | None],
    meter: ProgressMeter,
) -> list[tuple[list[FileEntry], dict[str, str]]]:
    """Write all tasks' tensors. shared: the weights, and the base's numbers that masks lie over."""
    stored = {tensor.name: tensor for tensor in shared[0].checkpoint.manifest.tensors}
    try:
        for target in plan.tensors:
            for n_bytes in _write_tensor(target, stored[target.name], models, shared):
                meter.advance(len(models) * n_bytes)
        return [model.writer.finish() for model in models]
    except BaseException:
        for model in models:
            model.writer.abandon()
        raise


def _write_tensor(
    target: PlannedTensor,
    spec: TensorSpec,
    models: Sequence[_TaskModel],
    shared: tuple[TensorReader, PatchReader | None],
) -> Iterator[int]:
    """Write all tasks' tensor, and yield the bytes of each run that is done."""
    reader, origin = shared
    found = [model.patch.specs(spec.name) for model in models]
    runs = cut_runs(spec.n_elements, found)
    is_masked = origin is not None and any(patches.MASK in parts for parts in found)
    of_base = read_runs(origin, spec.name, runs) if origin is not None and is_masked else ({} for _ in runs)
    of_tasks = (read_runs(model.patch, spec.name, runs) for model in models)
    for (first, behind), base, *parts in zip(runs, of_base, *of_tasks, strict=True):
        offset = first * DTYPE_BYTES[spec.dtype]
        content = torch.empty(behind * DTYPE_BYTES[spec.dtype] - offset, dtype=torch.uint8)
        reader.read_bytes(spec, offset, content.numpy().data)
        run = content.view(TORCH[spec.dtype])
        for model, own in zip(models, parts, strict=True):
            model.write(target, offset, run if model is models[-1] else run.clone(), own, base.get(patches.VALUES))
        yield content.nbytes


def _complete(
    checkpoint: LocalCheckpoint,
    plan: WeightsPlan,
    patch: TaskPatch,
    output: Path,
    weights: tuple[list[FileEntry], dict[str, str]],
) -> Manifest:
    """Write what lies beside a task's weights; return the manifest of all."""
    manifest, (entries, blake3_of) = checkpoint.manifest, weights
    beside = [
        *copy_companions(checkpoint, output, dtype=None),
        *write_index(plan, output),
        *_write_documents(manifest, patch, output),
    ]
    tensors = tuple(sorted((tensor.spec for tensor in plan.tensors), key=lambda tensor: tensor.name))
    return Manifest(
        kind=CheckpointKind.DENSE,
        files=tuple(sorted((*entries, *beside), key=lambda entry: entry.path)),
        tensors=tensors,
        weights_digest=digest_weights(tensors, blake3_of),
        tied=config.find_tied(config.read_config(output), [tensor.name for tensor in tensors], blake3_of),
        architecture=manifest.architecture,
        model_type=manifest.model_type,
        vocab_size=manifest.vocab_size,
    )


def _write_documents(manifest: Manifest, patch: TaskPatch, output: Path) -> list[FileEntry]:
    sha256 = next(file.sha256 for file in manifest.files if file.path == patch.file)
    record = {
        "format_version": MATERIALIZATION_FORMAT_VERSION,
        "artifact": {"content_digest": manifest.digest, "weights_digest": manifest.weights_digest},
        "patch": {"file": patch.file, "sha256": sha256},
        "task": patch.task,
    }
    text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False)
    return [
        write_file(output, RECORD_FILE, f"{text}\n".encode()),
        write_file(output, CARD_FILE, _card(manifest, patch, sha256).encode()),
    ]


def _card(manifest: Manifest, patch: TaskPatch, sha256: str) -> str:
    return f"""---
library_name: transformers
tags:
- merge
- amalgam
---

# The model of task {patch.task}

Made by Amalgam out of a multitask artifact: the model that its tasks share, with the patch of this task.

| input | sha256 |
|---|---|
| artifact (all files) | `{manifest.digest}` |
| its shared weights | `{manifest.weights_digest}` |
| `{patch.file}` | `{sha256}` |

`{RECORD_FILE}` says the same for programs.
"""


def _check_room(plan: WeightsPlan, folders: Sequence[Path]) -> None:
    needed = len(folders) * sum(file.size_bytes for file in plan.files)
    free = shutil.disk_usage(folders[0]).free
    if free < needed:
        what = "model needs" if len(folders) == 1 else f"{len(folders)} models need"
        raise OutOfDisk(f"The {what} {needed} bytes of disk and {free} are free; free some, and retry the job.")
