"""Evaluate one checkpoint on tasks: paths and values in, measurements out.

Of a multitask checkpoint the model of each task is materialized, measured and removed again, one after the other.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from app.domain.checkpoints import CheckpointKind, LocalCheckpoint
from app.domain.errors import HeadMismatch, ModelNotRunnable
from app.domain.jobs import Progress
from app.domain.tasks import LocalTask, Measurement
from app.domain.work import EvaluateWork
from workers.checkpoints.model import Models
from workers.checkpoints.patch_files import PatchReader
from workers.model_contract import Evaluator, Subject
from workers.pipelines.fusing import fuse_adapter
from workers.pipelines.materialize import find_patch, materialize
from workers.surgery import Modules


def evaluate(
    work: EvaluateWork,
    evaluators: Mapping[str, Evaluator],
    on_progress: Callable[[Progress], None],
    *,
    device: str = "cpu",
    models: Models | None = None,
) -> tuple[Measurement, ...]:
    """Measure the checkpoint on each task, in the order given; each checkpoint involved is loaded once.

    `evaluators` holds one evaluator per kind of the tasks; `models` those that are loaded already. The numbers do not
    depend on what else is measured.

    Raises: InvalidDataset, InputChanged, ModelNotRunnable, HeadMismatch, InvalidParameters.
    """
    models = models or Models(device)
    runnable = make_runnable(work, on_progress)
    measurements: list[Measurement] = []
    for index, task in enumerate(work.tasks):
        report = _Report(on_progress, index, len(work.tasks), task.spec.name)
        with open_subject(work, runnable, task, models, report.prepare) as subject:
            evaluator = evaluators[task.spec.kind]
            if subject.modules and not evaluator.card.has_class_logits:
                raise HeadMismatch(
                    f"The patch of task {task.spec.name!r} holds surgery modules, which tasks of kind "
                    f"{task.spec.kind!r} cannot be measured with; use the kind of task that they were learned on."
                )
            measurements += evaluator.measure(subject, work.split[task.id], models, report)
    return tuple(measurements)


@contextmanager
def open_subject(
    work: EvaluateWork,
    runnable: LocalCheckpoint,
    task: LocalTask,
    models: Models,
    on_progress: Callable[[Progress], None],
) -> Iterator[Subject]:
    """Yield what is measured on one of the work's tasks: the checkpoint, or the task's model out of it.

    runnable: as `make_runnable` gives it.
    """
    with _model_of(work, runnable, task.id, on_progress) as checkpoint:
        yield Subject(task, checkpoint, work.base_models[task.id], _modules_of(work, task.id))
        if work.patched is not None:
            models.forget(checkpoint)  # the next task has another


def _modules_of(work: EvaluateWork, task_id: str) -> Modules:
    """Return what runs beside the weights of a task's model."""
    if work.patched is None:
        return {}
    patch = find_patch(work.checkpoint.manifest, work.patched.labels[task_id])
    return PatchReader(work.checkpoint, patch.file).modules()


@contextmanager
def _model_of(
    work: EvaluateWork, runnable: LocalCheckpoint, task_id: str, on_progress: Callable[[Progress], None]
) -> Iterator[LocalCheckpoint]:
    """Yield the checkpoint to measure on a task: the one itself, or the task's model out of it."""
    if work.patched is None:
        yield runnable
        return
    folder = work.patched.scratch / task_id
    folder.mkdir(parents=True)
    try:
        manifest = materialize(work.checkpoint, work.patched.labels[task_id], folder, on_progress)
        yield LocalCheckpoint(id=work.checkpoint.id, path=folder, manifest=manifest)
    finally:
        shutil.rmtree(folder)


def make_runnable(work: EvaluateWork, on_progress: Callable[[Progress], None]) -> LocalCheckpoint:
    """Return the checkpoint; an adapter as the dense model that it makes of its base."""
    if work.checkpoint.manifest.kind is not CheckpointKind.ADAPTER:
        return work.checkpoint
    if work.adapter_base is None or work.scratch is None:
        raise ModelNotRunnable("The checkpoint is an adapter without its base; register it with a base_checkpoint.")
    on_progress(Progress(stage="fusing the adapter", fraction=0.0))
    return fuse_adapter(work.checkpoint, work.adapter_base, work.scratch)


class _Report:
    """Turns the examples done of one task into the progress of the whole job; tasks count alike."""

    def __init__(self, on_progress: Callable[[Progress], None], index: int, n_tasks: int, name: str) -> None:
        self._on_progress = on_progress
        self._index = index
        self._n_tasks = n_tasks
        self._stage = f"measuring {name}"
        self._started = time.monotonic()

    def prepare(self, progress: Progress) -> None:
        """Report that the task's model is being made; it takes no share of the job's progress."""
        self._on_progress(progress.model_copy(update={"fraction": self._index / self._n_tasks, "eta_seconds": None}))
        self._started = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        seconds_per_example = (time.monotonic() - self._started) / done
        left = (total - done) + total * (self._n_tasks - self._index - 1)  # as if all tasks were alike
        self._on_progress(
            Progress(
                stage=self._stage,
                fraction=(self._index + done / total) / self._n_tasks,
                done=done,
                total=total,
                unit="examples",
                eta_seconds=seconds_per_example * left,
            )
        )
