"""Learning before a merge: the tasks of the work order as models that run, around the merge set that streams.

Models run on one thread, and draws depend on the seed and the tasks' contents alone: on a CPU the same recipe learns
the same, to the bit.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import nn

from app.domain.checkpoints import CheckpointKind, LocalCheckpoint
from app.domain.errors import HeadMismatch, JobInternal, ModelNotRunnable
from app.domain.jobs import Progress
from app.domain.parameters import Parameters
from app.domain.recipes import Recipe, RecipeData
from app.domain.statistics_files import find_statistics, statistics_file
from app.domain.work import MergeWork
from workers.checkpoints.model import Models
from workers.checkpoints.places import find_places
from workers.contract import MergeContext, MergeMethod, PieceSource
from workers.learning.kept import Kept, KeptStatistics
from workers.learning.statistics_files import StatisticsFile, StatisticsOfModels
from workers.learning_contract import Factors, Learned
from workers.model_contract import Evaluator, Probe, Step, Subject, TokenLogits
from workers.pipelines.fusing import fuse_adapter

LEARNING_BEGINS, LEARNING_ENDS = 0.03, 0.95  # of the job's progress


class Phases:
    """The progress of a merge that learns: statistics, the steps of learning, the merge itself."""

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        self._on_progress = on_progress
        self._began_at = time.monotonic()
        self._span = (0.0, LEARNING_BEGINS)  # of the job's progress, that the pipeline fills
        self._reached = LEARNING_BEGINS

    def __call__(self, progress: Progress) -> None:
        """Report what the pipeline does before or after learning."""
        first, last = self._span
        self._on_progress(progress.model_copy(update={"fraction": first + (last - first) * progress.fraction}))

    def skip(self) -> None:
        """Hear that nothing is to be learned: it was before."""
        self._span = (LEARNING_BEGINS, 1.0)

    def begin(self, task: str) -> None:
        """Report that a task is opened for learning."""
        self._span = (LEARNING_ENDS, 1.0)
        if self._reached == LEARNING_BEGINS:  # a later model is opened within the time that is counted
            self._began_at = time.monotonic()
        self._on_progress(Progress(stage=f"opening {task}", fraction=self._reached))

    def on_step(self, step: Step) -> None:
        """Report a step of learning."""
        self.on_count(step.done, step.total, loss=step.loss)

    def on_count(self, done: int, total: int, *, loss: float | None = None) -> None:
        """Report how much is done, with the time left at the pace so far."""
        seconds_per_step = (time.monotonic() - self._began_at) / done
        self._reached = LEARNING_BEGINS + (LEARNING_ENDS - LEARNING_BEGINS) * done / total
        self._on_progress(
            Progress(
                stage="learning",
                fraction=self._reached,
                done=done,
                total=total,
                unit="steps",
                eta_seconds=seconds_per_step * (total - done),
                loss=loss,
            )
        )


@dataclass
class MergeLearner:
    """Runs the learner of a merge's method; a learning_contract.Learn. evaluators: one per kind of the tasks."""

    work: MergeWork
    evaluators: Mapping[str, Evaluator]
    phases: Phases
    device: str = "cpu"
    factors: Mapping[str, Factors] = field(default_factory=dict)  # where adapters are merged as factors
    n_examples: dict[int, int] = field(default_factory=dict)  # of each task that was opened
    kept: KeptStatistics | None = None  # of merges of the same models on the same data

    def __call__(
        self, method: MergeMethod, parameters: Parameters, source: PieceSource, context: MergeContext
    ) -> Learned:
        """Learn, and return what was found, or what an earlier merge has found."""
        if self.work.statistics:
            self.phases.skip()
            return _restore(method, self.work, context)
        data = self.work.recipe.data
        if method.learn is None or data is None:
            raise JobInternal(f"{method.card.name} was to learn without a learner or without data; report this fault.")
        is_of_models = method.card.data_of == "models"
        session = Session(self, data, source, context, torch.device(self.device), is_of_models, self.factors)
        if self.kept is None or method.card.statistics is None:
            learned: Learned = method.learn(parameters, session)
            return learned
        key = _key(method, parameters, self.work.recipe)
        found = self.kept.find(key, session.scratch)
        if found is not None:
            self.phases.skip()
            self.n_examples.update(found.n_examples)
            return found.statistics
        measured: StatisticsOfModels = method.learn(parameters, session)
        self.kept.add(key, Kept(measured, self.n_examples))
        return measured

    def on_factors(self, factors: Mapping[str, Factors]) -> "MergeLearner":
        """Return the learner of a merge set that is made of these factors; what it looks at is reported by this one."""
        return replace(self, factors=factors)

    def report(self) -> dict[str, JsonValue]:
        """Return what was looked at."""
        data = self.work.recipe.data
        if data is None:
            return {}
        tasks: list[JsonValue] = [
            {"task": one.task.spec.name, "digest": one.task.spec.digest, "n_examples": self.n_examples.get(index)}
            for index, one in enumerate(self.work.learning)
        ]
        return {"split": data.split, "transductive": data.transductive, "tasks": tasks}


def _key(method: MergeMethod, parameters: Parameters, recipe: Recipe) -> str:
    """Return what statistics depend on, beside models, data and seed."""
    read = parameters.model_dump(mode="json", include=None if method.reads is None else set(method.reads))
    steps = [step.model_dump(mode="json") for step in recipe.transforms]
    return json.dumps([method.card.name, read, steps], sort_keys=True)


def _restore(method: MergeMethod, work: MergeWork, context: MergeContext) -> Learned:
    """Open the statistics of each model where the first of the earlier results has them."""
    kind = str(method.card.statistics)
    found = find_statistics(kind, context.model_keys, [one.manifest.files for one in work.statistics])
    paths = [statistics_file(kind, key) for key in context.model_keys]
    if None in found:
        raise JobInternal(f"{paths[found.index(None)]} lies in none of the earlier results; report this fault.")
    return StatisticsOfModels(
        [StatisticsFile(work.statistics[at], path) for at, path in zip(found, paths, strict=True) if at is not None]
    )


@dataclass(frozen=True)
class Session:
    """What the learner gets; satisfies learning_contract.LearningSession."""

    learner: MergeLearner
    data: RecipeData
    source: PieceSource
    context: MergeContext
    device: torch.device
    is_of_models: bool  # each model has a task; else the tasks are those that the whole merge is tried on
    factors: Mapping[str, Factors] = field(default_factory=dict)  # see the contract
    fused: dict[int, LocalCheckpoint] = field(default_factory=dict)  # adapters as dense models, by model

    @property
    def tasks(self) -> Sequence[str]:
        """Names of the tasks."""
        return [one.task.spec.name for one in self.learner.work.learning]

    @property
    def scratch(self) -> Path:
        """A folder beside the artifact's."""
        return self.learner.work.output.parent / "learning"

    def open(self, task: int, *, model: int | None = None) -> Probe:
        """Return a task with a model of its own to run; see the contract."""
        one = self.learner.work.learning[task]
        self.learner.phases.begin(one.task.spec.name)
        evaluator = self.learner.evaluators[one.task.spec.kind]
        if evaluator.open_probe is None:
            raise HeadMismatch(
                f"Nothing can be learned on tasks of kind {one.task.spec.kind!r}; they are measured only."
            )
        has_head = one.task.spec.head.kind == "own" and model is None and self.is_of_models
        checkpoint = self._checkpoint(task if has_head else model)
        subject = Subject(one.task, checkpoint, one.head_base_model or checkpoint)
        # models of their own: the learner puts other weights into this one, and heads need the original
        probe = evaluator.open_probe(subject, self.data.split, Models(str(self.device)))
        chosen = self._choose(task, probe.n_examples)
        self.learner.n_examples[task] = len(chosen)
        return _restrict(probe, chosen)

    def places(self, module: nn.Module) -> Mapping[str, str]:
        """Return the tensor of the merge set by path of a parameter or buffer; see the contract."""
        work = self.learner.work
        return find_places(module, (work.base_model or work.models[0]).manifest)

    def generator(self, purpose: str, task: int) -> torch.Generator:
        """Return a generator keyed by (seed, purpose, content of the task)."""
        key = f"{self.context.seed}\0{purpose}\0{self.data.tasks[task].digest}"
        generator = torch.Generator()
        generator.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1)
        return generator

    def on_step(self, step: Step) -> None:
        """Report a step."""
        self.learner.phases.on_step(step)

    def on_count(self, done: int, total: int) -> None:
        """Report how much is done."""
        self.learner.phases.on_count(done, total)

    def _choose(self, task: int, n_examples: int) -> list[int]:
        """Return the examples that are looked at, in the file's order."""
        wanted = self.data.max_examples
        if wanted is None or wanted >= n_examples:
            return list(range(n_examples))
        order = torch.randperm(n_examples, generator=self.generator("examples", task))
        return sorted(order[:wanted].tolist())

    def _checkpoint(self, model: int | None) -> LocalCheckpoint:
        """Return the base model, or one of the models; an adapter as the dense model that it makes of the base."""
        work = self.learner.work
        checkpoint = work.base_model if model is None else work.models[model]
        if checkpoint is None:
            raise ModelNotRunnable("There is no base model to run; name one as base_model.")
        if checkpoint.manifest.kind is not CheckpointKind.ADAPTER or work.base_model is None or model is None:
            return checkpoint
        if model not in self.fused:
            self.fused[model] = fuse_adapter(checkpoint, work.base_model, work.output.parent / f"fused-{model}")
        return self.fused[model]


def _restrict(probe: Probe, chosen: Sequence[int]) -> Probe:
    """Return the probe of some of its examples. chosen: their indices, which count from 0 in what is returned."""
    place = {index: at for at, index in enumerate(chosen)}
    features, tokens = probe.features, probe.tokens
    return replace(
        probe,
        n_examples=len(chosen),
        logits=lambda batch: probe.logits([chosen[index] for index in batch]),
        losses=lambda batch: probe.losses([chosen[index] for index in batch]),
        features=None if features is None else lambda batch: features([chosen[index] for index in batch]),
        labels=[probe.labels[index] for index in chosen] if probe.labels else (),
        order=[place[index] for index in probe.order if index in place],
        tokens=None if tokens is None else _restrict_tokens(tokens, chosen),
    )


def _restrict_tokens(tokens: TokenLogits, chosen: Sequence[int]) -> TokenLogits:
    return TokenLogits(lambda index: tokens.of_example(chosen[index]), [tokens.counts[index] for index in chosen])
