"""The trained models that the evidence needs, each trained once and kept; an interrupted training goes on."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from app.domain.checkpoints import LocalCheckpoint, digest_json
from app.domain.tasks import LocalTask
from app.domain.work import CheckpointOutcome, FinetuneWork
from benchmarks.suite.inputs import Suite, ignore, open_checkpoint
from workers.runner import WorkOrder, perform

VALIDATION_FILE = "validation.json"


@dataclass(frozen=True)
class Training:
    """How a model is trained: a technique, its parameters beside the defaults, and a seed."""

    technique: str
    parameters: Mapping[str, JsonValue] = field(default_factory=dict)
    seed: int = 0

    @property
    def label(self) -> str:
        """A name for files: equal recipes have one name."""
        digest = digest_json({"technique": self.technique, "parameters": dict(self.parameters), "seed": self.seed})
        return f"{self.technique}-{digest[:12]}"


@dataclass(frozen=True)
class Trained:
    """A trained model, and (correct, total) of it on the validation split."""

    checkpoint: LocalCheckpoint
    validation: tuple[int, int]


class Trainer:
    """Trains models of the suite's tasks into a folder."""

    def __init__(self, suite: Suite, folder: Path) -> None:
        self._suite = suite
        self._folder = folder

    def train_all(self, training: Training, tasks: Sequence[LocalTask] | None = None) -> tuple[Trained, ...]:
        """Return a model for each task, trained by one recipe if it is not there yet."""
        return tuple(self._one(training, task) for task in (self._suite.tasks if tasks is None else tasks))

    def _one(self, training: Training, task: LocalTask) -> Trained:
        folder = self._folder / f"{training.label}-{task.spec.name}"
        if not folder.exists():
            print(
                f"training {task.spec.name}: {training.technique} {dict(training.parameters)} seed {training.seed}",
                flush=True,
            )
            self._train(training, task, folder)
        validation = json.loads((folder / VALIDATION_FILE).read_text(encoding="utf-8"))
        return Trained(open_checkpoint(folder / "model"), (validation["correct"], validation["total"]))

    def _train(self, training: Training, task: LocalTask, folder: Path) -> None:
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished / "model", ignore_errors=True)
        (unfinished / "model").mkdir(parents=True)
        work = FinetuneWork(
            base_model=self._suite.base,
            head_base_model=self._suite.base,
            task=task,
            technique=training.technique,
            parameters=dict(training.parameters),
            seed=training.seed,
            output=unfinished / "model",
            kept=unfinished / "state",
        )
        outcome = perform(WorkOrder(work=work), ignore)
        if not isinstance(outcome, CheckpointOutcome):
            raise TypeError(f"a fine-tuning gave a {type(outcome).__name__}, expected a checkpoint")
        found = outcome.measurements[-1]
        validation = {"correct": found.details.n_correct, "total": found.n}
        (unfinished / VALIDATION_FILE).write_text(json.dumps(validation), encoding="utf-8")
        shutil.rmtree(unfinished / "state", ignore_errors=True)
        unfinished.rename(folder)
