"""Merges of one model per task, measured on the tasks; every number goes through the ledger, none is measured twice."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pydantic import JsonValue

from app.domain.catalog import load_catalog
from app.domain.checkpoints import CheckpointKind, LocalCheckpoint
from app.domain.parameters import NestedMethod
from app.domain.recipes import PinnedStep, PinnedTask, Recipe, RecipeData, RecipeModel, pin
from app.domain.tasks import LocalTask
from app.domain.work import AnalyzeWork, CheckpointOutcome, EvaluateOutcome, EvaluateWork, LearningTask, MergeWork
from benchmarks.evidence.accuracy import Counts, plain
from benchmarks.evidence.ledger import Ledger
from benchmarks.suite.inputs import KIND, Suite, ignore
from workers.analysis_contract import Merged
from workers.catalog import load_evaluator, load_recipe
from workers.pipelines.bench import MemoryBench, Workshop
from workers.pipelines.materialize import materialize
from workers.runner import WorkOrder, perform

ONE_FILE = 1 << 53


class Merges:
    """Merges of a suite's models, by the place of each in the suite's order of tasks."""

    def __init__(self, suite: Suite, models: Sequence[LocalCheckpoint], ledger: Ledger) -> None:
        self._suite = suite
        self._models = tuple(models)
        self._ledger = ledger
        self._tasks = suite.tasks
        self._folder = tempfile.TemporaryDirectory(prefix="amalgam-evidence-")
        self._bench: MemoryBench | None = None

    @property
    def all(self) -> tuple[int, ...]:
        """The places of all models."""
        return tuple(range(len(self._models)))

    def individual(self, split: str) -> Counts:
        """Return what each task's own model scores on it."""
        found: dict[str, Sequence[int]] = {}
        for place in self.all:
            coefficients = [float(other == place) for other in self.all]
            found |= self.combine(coefficients, split, tasks=(place,))
        return found

    def combine(self, coefficients: Sequence[float], split: str, tasks: Sequence[int] | None = None) -> Counts:
        """Return what θ₀ + Σ cᵢ τᵢ scores on tasks, by default all."""
        of: dict[str, JsonValue] = {"coefficients": list(coefficients), "models": self._digests(self.all)}
        return self._measure(of, lambda: self._open().combine(coefficients), split, tasks or self.all)

    def merge(
        self, method: str, parameters: Mapping[str, JsonValue], split: str, models: Sequence[int] | None = None
    ) -> Counts:
        """Return what the merge of some models, by default all, scores on their tasks."""
        chosen = tuple(models or self.all)
        nested = NestedMethod(method=method, parameters=dict(parameters))
        of = self._identity(method, parameters, chosen)
        return self._measure(of, lambda: self._open().merge(nested, chosen), split, chosen)

    def learn(
        self,
        method: str,
        parameters: Mapping[str, JsonValue],
        *,
        transforms: Sequence[str] = (),
        max_examples: int | None = None,
        seed: int = 0,
    ) -> tuple[Counts, JsonValue]:
        """Merge all models by a method that looks at the validation split, and measure it on test.

        Returns the counts, and what the job reports of the learning.
        """
        of: dict[str, JsonValue] = {
            "method": method,
            "version": load_catalog().method(method).version,
            "parameters": dict(parameters),
            "transforms": list(transforms),
            "max_examples": max_examples,
            "seed": seed,
            "models": self._digests(self.all),
            "tasks": [task.spec.digest[:16] for task in self._tasks],
        }

        def run() -> JsonValue:
            pinned = tuple(
                PinnedTask(digest=one.spec.digest, head_base_model=pin(self._suite.base)) for one in self._tasks
            )
            data = RecipeData(split="validation", max_examples=max_examples, tasks=pinned)
            with _room() as room:
                recipe = self._recipe(method, parameters, transforms=transforms, data=data, seed=seed)
                merged, report = self._write(room, recipe)
                return {"learned": report["learned"], "test": self._evaluate(room, merged, "test")}

        found = self._ledger.recall(of, run)
        if not isinstance(found, dict):
            raise TypeError(f"the ledger holds {found!r}, expected counts and a report")
        return self._by_task(found["test"]), found["learned"]

    def merge_adapters(self, method: str, parameters: Mapping[str, JsonValue], split: str) -> Counts:
        """Return what the merge of all adapters by a method of adapters scores; its result is folded into the base."""
        of: dict[str, JsonValue] = {
            "adapter_method": method,
            "version": load_catalog().method(method).version,
            "parameters": dict(parameters),
            "models": self._digests(self.all),
            "split": split,
            "tasks": [task.spec.digest[:16] for task in self._tasks],
        }

        def run() -> JsonValue:
            with _room() as room:
                merged, _ = self._write(room, self._recipe(method, parameters))
                return self._evaluate(room, merged, split)

        return self._by_task(self._ledger.recall(of, run))

    def report(self, method: str, parameters: Mapping[str, JsonValue]) -> JsonValue:
        """Return what a merge of all models found out (`found` of the job's report); nothing is measured."""
        of = {"report_of": method, **self._identity(method, parameters, self.all)}

        def run() -> JsonValue:
            with _room() as room:
                return self._write(room, self._recipe(method, parameters))[1]["found"]

        return self._ledger.recall(of, run)

    def compress(self, method: str, parameters: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """Merge all models into a multitask artifact, and measure each task's model out of it on test.

        Returns the counts (`test`), what is stored (`storage`), and whether the models are the original ones (`exact`).
        """
        of = {"compressed_by": method, **self._identity(method, parameters, self.all), "tasks": self._task_digests()}

        def run() -> JsonValue:
            with _room() as room:
                merged, report = self._write(room, self._recipe(method, parameters))
                models = [self._materialize(merged, task, room) for task in self._tasks]
                own = [model.manifest.weights_digest for model in self._models]
                return {
                    "test": [
                        pair
                        for model, task in zip(models, self._tasks, strict=True)
                        for pair in self._evaluate(room, model, "test", (task,))
                    ],
                    "storage": report["storage"],
                    "exact": [model.manifest.weights_digest for model in models] == own,
                }

        found = self._ledger.recall(of, run)
        if not isinstance(found, dict):
            raise TypeError(f"the ledger holds {found!r}, expected counts and storage")
        return {**found, "test": plain(self._by_task(found["test"]))}

    def _identity(
        self, method: str, parameters: Mapping[str, JsonValue], places: Sequence[int]
    ) -> dict[str, JsonValue]:
        """Return what decides a merge: another version of the method is another merge."""
        return {
            "method": method,
            "version": load_catalog().method(method).version,
            "parameters": dict(parameters),
            "models": self._digests(places),
        }

    def _task_digests(self) -> list[JsonValue]:
        return [task.spec.digest[:16] for task in self._tasks]

    def _digests(self, places: Sequence[int]) -> list[JsonValue]:
        return [self._models[place].manifest.weights_digest[:16] for place in places]

    def _open(self) -> MemoryBench:
        if self._bench is None:
            work = AnalyzeWork(
                analysis="task_trend",
                base_model=self._suite.base,
                models=self._models,
                parameters={},
                tasks=self._tasks,
                head_bases={task.id: self._suite.base for task in self._tasks},
                scratch=Path(self._folder.name) / "bench",
                output=Path(self._folder.name),
            )
            workshop = Workshop(evaluators={KIND: load_evaluator(KIND)}, load_code=load_recipe, threads=1)
            self._bench = MemoryBench(work, workshop, ignore)
        return self._bench

    def _measure(
        self,
        of: Mapping[str, JsonValue],
        merge: Callable[[], AbstractContextManager[Merged]],
        split: str,
        places: Sequence[int],
    ) -> Counts:
        """Return the counts on tasks; the merge is made if any of them is not known yet."""
        keys = {place: self._key(of, place, split) for place in places}
        missing = [place for place in places if self._ledger.find(keys[place]) is None]
        if missing:
            with merge() as merged:
                for place in missing:
                    found = merged.measure(place, split)
                    self._ledger.keep(keys[place], [found.details.n_correct, found.n])
        return {self._tasks[place].spec.name: _pair(self._ledger.find(keys[place])) for place in places}

    def _key(self, of: Mapping[str, JsonValue], place: int, split: str) -> dict[str, JsonValue]:
        return {**of, "task": self._tasks[place].spec.digest[:16], "split": split}

    def _recipe(
        self,
        method: str,
        parameters: Mapping[str, JsonValue],
        *,
        transforms: Sequence[str] = (),
        data: RecipeData | None = None,
        seed: int = 0,
    ) -> Recipe:
        """Return the recipe of a merge of all models."""
        weights = [1.0] * len(self._models)
        card, effective = load_catalog().check(method, parameters, has_base_model=True, weights=weights)
        are_adapters = any(model.manifest.kind is CheckpointKind.ADAPTER for model in self._models)
        labels = [task.spec.name if card.produces == "multitask" else None for task in self._tasks]
        return Recipe(
            method=card.name,
            method_version=card.version,
            base_model=pin(self._suite.base),
            models=tuple(
                RecipeModel(**pin(model).model_dump(), task=label)
                for model, label in zip(self._models, labels, strict=True)
            ),
            parameters=effective,
            seed=seed,
            shard_bytes=ONE_FILE,
            transforms=tuple(_pin_transform(name) for name in transforms),
            data=data,
            adapter_space="delta" if are_adapters and card.produces == "dense" else None,
        )

    def _write(self, room: Path, recipe: Recipe) -> tuple[LocalCheckpoint, dict[str, JsonValue]]:
        """Merge all models as a job would; return the result and the job's report."""
        base = self._suite.base
        learning = tuple(LearningTask(task=task, head_base_model=base) for task in self._tasks) if recipe.data else ()
        output = room / "merge" / "merged"
        output.mkdir(parents=True)
        work = MergeWork(recipe=recipe, base_model=base, models=self._models, learning=learning, output=output)
        outcome = perform(WorkOrder(work=work), ignore)
        if not isinstance(outcome, CheckpointOutcome):
            raise TypeError(f"a merge gave a {type(outcome).__name__}, expected a checkpoint")
        return LocalCheckpoint(id=recipe.method, path=output, manifest=outcome.manifest), outcome.report

    def _evaluate(
        self, room: Path, checkpoint: LocalCheckpoint, split: str, tasks: Sequence[LocalTask] | None = None
    ) -> list[JsonValue]:
        """Return [correct, total] on tasks, by default all."""
        measured = tuple(tasks or self._tasks)
        work = EvaluateWork(
            checkpoint=checkpoint,
            tasks=measured,
            base_models={task.id: self._suite.base for task in measured},
            split={task.id: split for task in measured},
            adapter_base=self._suite.base,
            scratch=room / "fused",
        )
        outcome = perform(WorkOrder(work=work), ignore)
        if not isinstance(outcome, EvaluateOutcome):
            raise TypeError(f"an evaluation gave a {type(outcome).__name__}, expected measurements")
        return [[one.details.n_correct, one.n] for one in outcome.measurements]

    def _materialize(self, artifact: LocalCheckpoint, task: LocalTask, room: Path) -> LocalCheckpoint:
        output = room / task.spec.name
        output.mkdir()
        return LocalCheckpoint(id=task.id, path=output, manifest=materialize(artifact, task.spec.name, output, ignore))

    def _by_task(self, pairs: JsonValue) -> Counts:
        if not isinstance(pairs, list):
            raise TypeError(f"the ledger holds {pairs!r}, expected a list of counts")
        return {task.spec.name: _pair(pair) for task, pair in zip(self._tasks, pairs, strict=True)}


@contextmanager
def _room() -> Iterator[Path]:
    """Give a folder that is gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="amalgam-evidence-") as folder:
        yield Path(folder)


def _pin_transform(name: str) -> PinnedStep:
    card, parameters = load_catalog().check_step("transforms", name, {}, pointer="")
    return PinnedStep(name=card.name, version=card.version, parameters=parameters)


def _pair(found: JsonValue) -> tuple[int, int]:
    match found:
        case [int(correct), int(total)]:
            return correct, total
    raise TypeError(f"the ledger holds {found!r}, expected [correct, total]")
