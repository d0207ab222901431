"""The bench of an analysis: merges in memory, one at a time, measured on tasks; satisfies analysis_contract.Bench.

Every merge is one that `POST /v1/merges` would make, byte by byte, and is gone when its block ends; or it is one that
was there before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from app.domain.analyses import recipe_of_merge
from app.domain.catalog import MAX_MODELS, Catalog, load_catalog
from app.domain.checkpoints import CheckpointKind, FileEntry, LocalCheckpoint
from app.domain.errors import HeadMismatch, Invalid, InvalidParameters
from app.domain.jobs import Progress
from app.domain.parameters import NestedMethod
from app.domain.planning import plan_merge
from app.domain.recipes import Recipe, RecipeModel, pin
from app.domain.tasks import LocalTask, Measurement
from app.domain.work import AnalyzeWork
from workers.analysis_contract import Classified
from workers.checkpoints import parallel
from workers.checkpoints.companions import copy_companions
from workers.checkpoints.held import hold
from workers.checkpoints.model import Models
from workers.contract import RecipeCode
from workers.memory import free_bytes
from workers.model_contract import Evaluator, Probe, Subject
from workers.pipelines.evaluate import make_runnable, open_subject
from workers.pipelines.held_merge import MergeSet, can_hold, merge_in_memory
from workers.pipelines.progress import ProgressMeter
from workers.statistics.kept import Shelf

COMBINATION = NestedMethod(method="task_arithmetic", parameters={"scaling_coefficient": 1.0})
HELD_SHARE = 0.5  # of the memory that is free: a held model may take so much
BATCH = 32  # examples that are run at once


@dataclass(frozen=True)
class Workshop:
    """What a bench merges and measures with."""

    evaluators: Mapping[str, Evaluator]  # by the kind of task
    load_code: Callable[[Recipe], RecipeCode]
    device: str = "cpu"
    threads: int | None = None


class MemoryBench:
    """The bench over a work's models and tasks."""

    def __init__(self, work: AnalyzeWork, workshop: Workshop, on_progress: Callable[[Progress], None]) -> None:
        self._work = work
        self._workshop = workshop
        self._scratch = work.scratch or work.output.parent / "bench"
        self._models = Models(workshop.device)
        self._shelf = Shelf()
        self._on_shelf: tuple[int, ...] = ()  # the models whose statistics it keeps
        self._meter = ProgressMeter(on_progress, total=0, unit="runs")

    @property
    def n_models(self) -> int:
        """How many models there are to merge."""
        return len(self._work.models)

    @property
    def n_tasks(self) -> int:
        """How many tasks there are to measure on."""
        return len(self._work.tasks)

    def expect(self, n_runs: int) -> None:
        """Say how often models will be run on a task."""
        self._meter.expect(n_runs)
        self._meter.enter("measuring")

    def check(self, method: NestedMethod, n_models: int) -> None:
        """Check that a method can merge so many models in memory. Raises: InvalidParameters, Invalid."""
        self._recipe(method, range(n_models), [1.0] * n_models)

    def count_models(self, method: NestedMethod) -> tuple[int, int]:
        """Return how few and how many of the bench's models a method takes."""
        card = self._catalog.method(method.method)
        return card.min_models, min(self.n_models, card.max_models or MAX_MODELS)

    def merge(self, method: NestedMethod, models: Sequence[int]) -> AbstractContextManager["_Measurable"]:
        """Merge some models with weights of 1."""
        return self._merged(self._recipe(method, models, [1.0] * len(models)), models)

    @contextmanager
    def take(self, method: NestedMethod) -> Iterator["_Measurable"]:
        """Take the merge that the work names; where it names none, merge all models."""
        work = self._work.merged
        if work is None:
            with self.merge(method, range(self.n_models)) as merged:
                yield merged
            return
        runnable = make_runnable(work, lambda _: None)
        yield self._measurable(lambda task: open_subject(work, runnable, task, self._models, lambda _: None))

    def combine(self, coefficients: Sequence[float]) -> AbstractContextManager["_Measurable"]:
        """Give θ₀ + Σᵢ cᵢ τᵢ."""
        every = range(self.n_models)
        return self._merged(self._recipe(COMBINATION, every, coefficients), every)

    @cached_property
    def _catalog(self) -> Catalog:
        return load_catalog()

    @cached_property
    def _companions(self) -> tuple[FileEntry, ...]:
        self._scratch.mkdir()
        return tuple(copy_companions(self._work.base_model, self._scratch, dtype=None))

    def _recipe(self, method: NestedMethod, models: Sequence[int], weights: Sequence[float]) -> Recipe:
        chosen = [self._work.models[index] for index in models]
        return recipe_of_merge(
            self._catalog,
            method,
            base=pin(self._work.base_model),
            models=[
                RecipeModel(**pin(model).model_dump(), weight=weight)
                for model, weight in zip(chosen, weights, strict=True)
            ],
            has_adapters=CheckpointKind.ADAPTER in (model.manifest.kind for model in chosen),
        )

    @contextmanager
    def _merged(self, recipe: Recipe, models: Sequence[int]) -> Iterator["_Measurable"]:
        merge_set = self._merge_set(recipe, [self._work.models[index] for index in models])
        tensors = merge_in_memory(merge_set, recipe, self._workshop.load_code(recipe), self._shelf_of(models))
        identity = FileEntry(path="recipe.json", size_bytes=0, sha256=recipe.digest)
        checkpoint = hold(tensors, self._scratch, self._companions, identity)
        try:
            yield self._measurable(lambda task: nullcontext(Subject(task, checkpoint, self._work.head_bases[task.id])))
        finally:
            self._models.forget(checkpoint)

    def _measurable(self, open_on: "OpenOn") -> "_Measurable":
        return _Measurable(self._work, self._workshop.evaluators, self._models, open_on, self._meter)

    def _shelf_of(self, models: Sequence[int]) -> Shelf:
        if tuple(models) != self._on_shelf:
            self._shelf, self._on_shelf = Shelf(), tuple(models)
        self._shelf.begin()
        return self._shelf

    def _merge_set(self, recipe: Recipe, models: Sequence[LocalCheckpoint]) -> MergeSet:
        base = self._work.base_model
        card, beside = self._catalog.method(recipe.method), self._catalog.cards_beside(recipe)
        plan = plan_merge(recipe, base.manifest, [model.manifest for model in models], card, beside)
        if not can_hold(recipe, card, plan, room_bytes=int(free_bytes() * HELD_SHARE)):
            raise Invalid(
                f"A merge by {card.name} cannot be measured from memory: it must be one dense model made from weights "
                "alone, and fit twice into half of what is free. Take another method, or a worker with more memory."
            )
        return MergeSet(plan, base, models, self._workshop.device, self._workshop.threads)


OpenOn = Callable[[LocalTask], AbstractContextManager[Subject]]  # a merge on one of the tasks


@dataclass(frozen=True)
class _Measurable:
    """A merge on the work's tasks; satisfies analysis_contract.Merged."""

    work: AnalyzeWork
    evaluators: Mapping[str, Evaluator]
    models: Models
    open_on: OpenOn
    meter: ProgressMeter

    def measure(self, task: int, split: str | None = None) -> Measurement:
        """Return the task's metric over a whole split."""
        local = self.work.tasks[task]
        evaluator = self.evaluators[local.spec.kind]
        with self.open_on(local) as subject:
            found = evaluator.measure(subject, split or self.work.split, self.models, _ignore)
        self.meter.advance(1)
        return next(one for one in found if one.name == local.spec.metric)

    def classify(self, task: int, max_examples: int) -> Classified:
        """Return the logits of evenly spaced examples, in their order."""
        with self._open(task, max_examples) as (probe, chosen):
            logits = _run(probe, probe.logits, chosen)
        self.meter.advance(1)
        return Classified(logits, torch.tensor([probe.labels[index] for index in chosen]))

    def embed(self, task: int, max_examples: int) -> Tensor:
        """Return the features of the same examples."""
        with self._open(task, max_examples) as (probe, chosen):
            if probe.features is None:
                raise HeadMismatch(
                    f"Task {self.work.tasks[task].spec.name!r} has head 'own', under which models give logits and no "
                    "features. Analyze on a task with another head."
                )
            features = _run(probe, probe.features, chosen)
        self.meter.advance(1)
        return features

    @contextmanager
    def _open(self, task: int, max_examples: int) -> Iterator[tuple[Probe, list[int]]]:
        """Yield the model on the task's split, and the examples that are looked at."""
        local = self.work.tasks[task]
        evaluator = self.evaluators[local.spec.kind]
        if evaluator.open_probe is None or not evaluator.card.has_class_logits:
            raise InvalidParameters(
                f"Tasks of kind {local.spec.kind!r} give no logits of classes, which "
                f"{self.work.analysis} looks at. Analyze on tasks of another kind."
            )
        with self.open_on(local) as subject:
            probe = evaluator.open_probe(subject, self.work.split, self.models)
            n = min(max_examples, probe.n_examples)
            yield probe, [index * probe.n_examples // n for index in range(n)]


def _run(probe: Probe, function: Callable[[Sequence[int]], Tensor], chosen: Sequence[int]) -> Tensor:
    """Return what the function gives for the chosen examples, in their order; the batches do not show in it."""
    wanted = frozenset(chosen)
    order = [index for index in probe.order if index in wanted]
    with torch.inference_mode():
        parts = [function(batch) for batch in parallel.batched(order, BATCH)]
    place = {index: at for at, index in enumerate(order)}
    return torch.cat(parts).cpu()[torch.tensor([place[index] for index in chosen])]


def _ignore(_done: int, _total: int) -> None:
    """Take a count of examples and do nothing: a bench counts runs."""
