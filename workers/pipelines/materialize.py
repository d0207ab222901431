"""Materialize: the dense model of one task out of a multitask checkpoint: its shared weights with the task's patch.

A tensor at a time is read, patched in place and written; equal artifacts give equal bytes.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from app.domain.checkpoints import (
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
    """Write a task's dense model into the empty folder `output` and return its manifest.

    Surgery modules in the patch are no part of it: whoever runs the model runs them too, or has refused them before.
    Raises: JobError for a task that the checkpoint has no patch for; InputChanged for files that are not those of one
        artifact; NotFinite naming the tensor; OutOfDisk. On any error the weight files that were begun are removed.
    """
    manifest = checkpoint.manifest
    patch = find_patch(manifest, task)
    plan = plan_copy(manifest)
    _check_room(plan, output)
    meter = ProgressMeter(on_progress, total=sum(tensor.size_bytes for tensor in manifest.tensors))
    meter.enter(f"applying the patch of {task}")
    with TensorReader(checkpoint) as reader, one_torch_thread():
        patched = _Patched(checkpoint, patch, reader)
        entries, blake3_of = _write_weights(plan, patched, output, meter)
    entries += copy_companions(checkpoint, output, dtype=None)
    entries += write_index(plan, output)
    entries += _write_documents(manifest, patch, output)
    tensors = tuple(sorted((tensor.spec for tensor in plan.tensors), key=lambda tensor: tensor.name))
    return Manifest(
        kind=CheckpointKind.DENSE,
        files=tuple(sorted(entries, key=lambda entry: entry.path)),
        tensors=tensors,
        weights_digest=digest_weights(tensors, blake3_of),
        tied=config.find_tied(config.read_config(output), [tensor.name for tensor in tensors], blake3_of),
        architecture=manifest.architecture,
        model_type=manifest.model_type,
        vocab_size=manifest.vocab_size,
    )


def find_patch(manifest: Manifest, task: str) -> TaskPatch:
    """Return the patch of a task. Raises: JobError with the tasks there are."""
    found = next((patch for patch in manifest.patches if patch.task == task), None)
    if found is None:
        known = ", ".join(patch.task for patch in manifest.patches) or "none"
        raise JobError(f"The checkpoint has no patch for task {task!r}; it has: {known}. Name one of those.")
    return found


class _Patched:
    """A task's tensors, made from the shared ones when asked for."""

    def __init__(self, checkpoint: LocalCheckpoint, patch: TaskPatch, reader: TensorReader) -> None:
        self._task = patch.task
        self._reader = reader
        self._stored = {tensor.name: tensor for tensor in checkpoint.manifest.tensors}
        self._patch = PatchReader(checkpoint, patch.file)
        base_file = checkpoint.manifest.patch_base
        self._base = PatchReader(checkpoint, base_file) if base_file is not None else None
        for source in (self._patch, *((self._base,) if self._base is not None else ())):
            _check_belongs(source, checkpoint)

    def read(self, target: PlannedTensor) -> torch.Tensor:
        """Return a tensor of the task's model, in its stored dtype."""
        tensor = _read_whole(self._reader, self._stored[target.name])
        parts = self._patch.parts(target.name)
        base = None
        if patches.MASK in parts and self._base is not None:
            base = self._base.parts(target.name)[patches.VALUES]
        patches.apply(tensor, parts, base)
        if patches.is_arithmetic(parts):
            self._check(tensor, target)
        return tensor

    def _check(self, tensor: torch.Tensor, target: PlannedTensor) -> None:
        if target.name.endswith(VARIANCE_SUFFIX):
            tensor.clamp_(min=0.0)
        if not has_finite_bits(tensor.view(-1)):
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


def _read_whole(reader: TensorReader, spec: TensorSpec) -> torch.Tensor:
    content = torch.empty(spec.size_bytes, dtype=torch.uint8)
    reader.read_bytes(spec, 0, content.numpy().data)
    return content.view(TORCH[spec.dtype]).view(spec.shape)


def _write_weights(
    plan: WeightsPlan, patched: _Patched, output: Path, meter: ProgressMeter
) -> tuple[list[FileEntry], dict[str, str]]:
    writer = WeightsWriter(plan, output)
    try:
        for target in plan.tensors:
            content = patched.read(target).reshape(-1).view(torch.uint8).numpy().data
            writer.place(target, 0, content)
            writer.digest(target, content)
            meter.advance(target.end - target.begin)
        return writer.finish()
    except BaseException:
        writer.abandon()
        raise


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


def _check_room(plan: WeightsPlan, output: Path) -> None:
    needed = sum(file.size_bytes for file in plan.files)
    free = shutil.disk_usage(output).free
    if free < needed:
        raise OutOfDisk(f"The model needs {needed} bytes of disk and {free} are free; free some, and retry the job.")
