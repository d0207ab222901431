"""The patches of a multitask artifact, while it is merged: encoded with each run, spooled, written behind the weights.

A tensor that is not merged (excluded, a buffer, integers) travels whole in the patches of the models whose own differs
from the shared one.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from app.domain.checkpoints import FileEntry, LocalCheckpoint, TaskPatch, TensorSpec
from app.domain.errors import NotFinite
from app.domain.patches import BASE_FILE, patch_path
from app.domain.plans import PlannedTensor
from app.domain.recipes import Recipe
from workers import patches, surgery
from workers.checkpoints.base_file import BaseFile
from workers.checkpoints.finiteness import has_finite_bits
from workers.checkpoints.patch_files import PatchFile, PatchWriter
from workers.checkpoints.patch_spools import TORCH
from workers.checkpoints.reader import TORCH_DTYPES, FloatReader
from workers.patches import Measured, Part, Patch
from workers.pipelines.additions import copy_patches
from workers.surgery import Modules

COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class RunPatches:
    """What a run of elements adds to the files beside the weights, encoded."""

    of_tasks: tuple[list[Part], ...]
    of_base: torch.Tensor | None  # [m] in the stored dtype, where masks lie over it
    measures: NDArray[np.int64] | None = None  # [n_models, ...], of masks that have no scale yet


def label_tasks(recipe: Recipe) -> tuple[str, ...]:
    """Return the task of each model: its label in the recipe, else its place."""
    return tuple(model.task or f"model-{index}" for index, model in enumerate(recipe.models))


def encode_run(
    base: torch.Tensor | None, offset: int, found: Sequence[Patch], target: PlannedTensor, tasks: Sequence[str]
) -> RunPatches:
    """Return a run's patches as they are stored; nothing in it shares memory with the run.

    base: [m] float32, of the run, whose first element has flat index `offset` in the tensor; it is given away.
    Raises: NotFinite naming the task and the tensor where a number does not fit the tensor's dtype.
    """
    dtype = TORCH_DTYPES[target.dtype]
    of_tasks = tuple(patches.encode(patch, dtype, target.shape, offset) for patch in found)
    for task, parts in zip(tasks, of_tasks, strict=True):
        _check_finite(parts, task, target)
    masks = [patch for patch in found if isinstance(patch, patches.Masked)]
    of_base = base.to(dtype) if masks and base is not None else None
    measures = [mask.measure for mask in masks if mask.measure is not None]
    return RunPatches(of_tasks, of_base, np.stack(measures) if measures else None)


def _check_finite(parts: Sequence[Part], task: str, target: PlannedTensor) -> None:
    for part in parts:
        content = part.content
        if not isinstance(content, torch.Tensor) or not content.is_floating_point() or has_finite_bits(content):
            continue
        raise NotFinite(
            f"The patch of task {task!r} for tensor {target.name!r} holds a number that is not finite in "
            f"{content.dtype}, expected finite ones; choose a wider output dtype, or exclude the tensor."
        )


@dataclass(frozen=True)
class PatchesWritten:
    """The files beside the weights."""

    entries: tuple[FileEntry, ...] = ()
    patches: tuple[TaskPatch, ...] = ()
    base_file: str | None = None
    warnings: tuple[str, ...] = ()


class TaskPatches:
    """Collects the patches of all tasks while the shared weights are written.

    over_base: the tensors of the result, where masks lie over the base.
    """

    def __init__(
        self,
        recipe: Recipe,
        output: Path,
        *,
        over_base: Sequence[PlannedTensor] | None = None,
        onto: LocalCheckpoint | None = None,
    ) -> None:
        self._output = output
        self._onto = onto
        self._tasks = label_tasks(recipe)
        about: dict[str, str] = {"method": recipe.method, "method_version": str(recipe.method_version)}
        files = [PatchFile(patch_path(task), {**about, "task": task}) for task in self._tasks]
        self._writer = PatchWriter(output, files)
        self._base = None if over_base is None else BaseFile(output, over_base, about)
        self._measured: dict[str, Measured] = {}  # by the result's tensors
        self._unscaled: list[PlannedTensor] = []
        self._warnings: list[str] = []
        self._places: list[tuple[str, ...]] = [()] * len(self._tasks)  # of each task's surgery modules

    def place(self, target: PlannedTensor, offset: int, runs: Sequence[RunPatches]) -> list[RunPatches]:
        """Write what runs add to the base's file, from byte `offset` of the tensor on; return the rest of them.

        From any thread, in any order.
        """
        for run in runs:
            if self._base is not None and run.of_base is not None:
                self._base.place(target.name, offset, run.of_base)
                offset += run.of_base.nbytes
        return [replace(run, of_base=None) for run in runs]

    def write(self, target: PlannedTensor, runs: Sequence[RunPatches]) -> None:
        """Take the next runs of a tensor."""
        for run in runs:
            for index, parts in enumerate(run.of_tasks):
                self._writer.write(index, target.name, target.dtype, parts)
            if run.measures is not None:
                self._add_measures(target, run.measures)

    def write_scales(self, scales: Callable[[Mapping[str, Measured]], Mapping[str, Sequence[float]]]) -> None:
        """Take the scales of masks that had none, once all runs are written; by the names of the merged tensors."""
        measured = {target.source: self._measured[target.name] for target in self._unscaled}
        found = scales(measured)
        for target in self._unscaled:
            for index, scale in enumerate(found[target.source]):
                part = patches.encode_scale(scale)
                _check_finite([part], self._tasks[index], target)
                self._writer.write(index, target.name, target.dtype, [part])

    def write_copied(
        self,
        targets: Sequence[PlannedTensor],
        reference: tuple[FloatReader, Mapping[str, TensorSpec]],
        models: Sequence[tuple[FloatReader, Mapping[str, TensorSpec]]],
    ) -> None:
        """Take the models' own tensors of those that are not merged, where they differ from the reference's."""
        for target in targets:
            stored = reference[1][target.name]
            for index, (reader, found) in enumerate(models):
                own = found.get(target.source)
                if own is None:
                    continue
                if (own.dtype, own.shape) != (stored.dtype, stored.shape):
                    self._warnings.append(
                        f"Tensor {target.name} of task {self._tasks[index]} has another shape or dtype than the shared "
                        "one, which its patch leaves in place."
                    )
                elif _differ(reference[0], stored, reader, own):
                    self._copy(index, target, reader, own)

    def write_modules(self, of_tasks: Sequence[Modules]) -> None:
        """Take the surgery modules of each task."""
        for index, modules in enumerate(of_tasks):
            self._places[index] = tuple(sorted(modules))
            for place in self._places[index]:
                self._writer.write(index, place, "F32", surgery.encode(modules[place]))

    def finish(self, weights_digest: str) -> PatchesWritten:
        """Write the files. weights_digest: of the shared weights that the patches apply to."""
        kept = () if self._onto is None else copy_patches(self._onto, weights_digest, self._output)
        with ThreadPoolExecutor(1) as beside:
            base = None if self._base is None else beside.submit(self._base.finish, weights_digest)
            written = self._writer.finish({"applies_to": weights_digest})
            of_base = () if base is None else (base.result(),)
        return PatchesWritten(
            entries=(*kept, *(file.entry for file in written), *of_base),
            patches=(
                *(() if self._onto is None else self._onto.manifest.patches),
                *(
                    TaskPatch(task=task, file=file.entry.path, n_values=file.n_values, modules=places)
                    for task, file, places in zip(self._tasks, written, self._places, strict=True)
                ),
            ),
            base_file=None if self._base is None else BASE_FILE,
            warnings=tuple(self._warnings),
        )

    def abandon(self) -> None:
        """Remove what was written."""
        self._writer.abandon()
        if self._base is not None:
            self._base.abandon()
        if self._onto is not None:
            for patch in self._onto.manifest.patches:
                (self._output / patch.file).unlink(missing_ok=True)

    def _add_measures(self, target: PlannedTensor, measures: NDArray[np.int64]) -> None:
        if target.name not in self._measured:
            self._unscaled.append(target)
            self._measured[target.name] = Measured(target.spec.n_elements, np.zeros_like(measures))
        total = self._measured[target.name].measures
        np.add(total, measures, out=total)

    def _copy(self, index: int, target: PlannedTensor, reader: FloatReader, own: TensorSpec) -> None:
        for offset in range(0, own.size_bytes, COPY_BYTES):
            content = _read(reader, own, offset)
            numbers = torch.from_numpy(content).view(TORCH[own.dtype])
            self._writer.write(index, target.name, target.dtype, [Part(patches.VALUES, numbers, own.shape)])


def _differ(reader: FloatReader, spec: TensorSpec, other: FloatReader, own: TensorSpec) -> bool:
    return any(
        not np.array_equal(_read(reader, spec, offset), _read(other, own, offset))
        for offset in range(0, spec.size_bytes, COPY_BYTES)
    )


def _read(reader: FloatReader, spec: TensorSpec, offset: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    content = np.empty(min(COPY_BYTES, spec.size_bytes - offset), dtype=np.uint8)
    reader.read_bytes(spec, offset, content.data)
    return content
