"""Merges of one model per task, measured on the tasks; every number goes through the ledger, none is measured twice."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path

from pydantic import JsonValue

from app.domain.adapters import AdapterSpace
from app.domain.catalog import load_catalog
from app.domain.checkpoints import CheckpointKind, LocalCheckpoint
from app.domain.parameters import NestedMethod
from app.domain.recipes import PinnedStep, PinnedTask, Recipe, RecipeData, RecipeModel, pin
from app.domain.tasks import LocalTask
from app.domain.work import CheckpointOutcome, EvaluateOutcome, EvaluateWork, LearningTask, MergeWork, PatchedTasks
from benchmarks.evidence.accuracy import Counts, plain
from benchmarks.evidence.features import measure_distances
from benchmarks.evidence.ledger import Ledger
from benchmarks.evidence.lessons import Learned, Lesson
from benchmarks.suite.inputs import Suite, ignore, open_bench
from workers.analysis_contract import Merged
from workers.pipelines.bench import MemoryBench
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

    def learn(self, lesson: Lesson, *, watched: int = 0) -> Learned:
        """Merge all models by a method that looks at data, and measure it on the splits that it has not looked at.

        watched: test texts of each task on which features are compared with those of the task's own model, of the
        lesson's shared merge (`before`) and of the result (`after`).
        """
        of: dict[str, JsonValue] = {
            **asdict(lesson),
            **({"watched": watched} if watched else {}),
            "version": load_catalog().method(lesson.method).version,
            "models": self._digests(self.all),
            "tasks": self._task_digests(),
        }

        def run() -> JsonValue:
            with _room() as room:
                merged, report = self._write(room, self._recipe_of(lesson))
                counts: dict[str, JsonValue] = {split: self._evaluate(room, merged, split) for split in lesson.measured}
                distances = self._watch(room, merged, lesson, watched) if watched else None
                return {"learned": report["learned"], "counts": counts, "distances": distances}

        found = self._ledger.recall(of, run)
        if not isinstance(found, dict) or not isinstance(counts := found["counts"], dict):
            raise TypeError(f"the ledger holds {found!r}, expected counts and a report")
        by_split = {split: self._by_task(pairs) for split, pairs in counts.items()}
        return Learned(found["learned"], by_split, found.get("distances"))

    def merge_adapters(
        self, method: str, parameters: Mapping[str, JsonValue], split: str, *, space: AdapterSpace = "delta"
    ) -> Counts:
        """Return what the merge of all adapters into an adapter scores: by a method of adapters, or in another space.

        The result is folded into the base.
        """
        of: dict[str, JsonValue] = {
            "adapter_method": method,
            "version": load_catalog().method(method).version,
            "parameters": dict(parameters),
            "space": space,
            "models": self._digests(self.all),
            "split": split,
            "tasks": self._task_digests(),
        }

        def run() -> JsonValue:
            with _room() as room:
                merged, _ = self._write(room, self._recipe(method, parameters, space=space))
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
            self._bench = open_bench(self._suite, self._models, Path(self._folder.name))
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

    def _recipe_of(self, lesson: Lesson) -> Recipe:
        """Return the recipe of a merge that learns on the tasks of all models."""
        base = pin(self._suite.base)
        pinned = tuple(PinnedTask(digest=task.spec.digest, head_base_model=base) for task in self._tasks)
        recipe = self._recipe(lesson.method, lesson.parameters, space=lesson.space)
        return recipe.model_copy(
            update={
                "seed": lesson.seed,
                "transforms": tuple(_pin_transform(name) for name in lesson.transforms),
                "data": RecipeData(split=lesson.split, max_examples=lesson.max_examples, tasks=pinned),
            }
        )

    def _recipe(self, method: str, parameters: Mapping[str, JsonValue], *, space: AdapterSpace = "delta") -> Recipe:
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
            shard_bytes=ONE_FILE,
            adapter_space=space if are_adapters and card.produces == "dense" else None,
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
        work = self._evaluation_of(room, checkpoint, split, tuple(tasks or self._tasks))
        outcome = perform(WorkOrder(work=work), ignore)
        if not isinstance(outcome, EvaluateOutcome):
            raise TypeError(f"an evaluation gave a {type(outcome).__name__}, expected measurements")
        return [[one.details.n_correct, one.n] for one in outcome.measurements]

    def _evaluation_of(
        self, room: Path, checkpoint: LocalCheckpoint, split: str, tasks: Sequence[LocalTask]
    ) -> EvaluateWork:
        return EvaluateWork(
            checkpoint=checkpoint,
            tasks=tuple(tasks),
            base_models={task.id: self._suite.base for task in tasks},
            split={task.id: split for task in tasks},
            adapter_base=self._suite.base,
            scratch=room / "fused",
            patched=_patches_of(checkpoint, tasks, room),
        )

    def _watch(self, room: Path, merged: LocalCheckpoint, lesson: Lesson, n_texts: int) -> JsonValue:
        """Return the distances of features before and after, each task's on so many test texts."""
        (own_room := room / "watched").mkdir()
        shared = NestedMethod.model_validate(lesson.parameters["shared"])
        operated = self._evaluation_of(own_room, merged, "test", self._tasks)
        return measure_distances(self._suite, self._models, shared, operated, n_texts)

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


def _patches_of(checkpoint: LocalCheckpoint, tasks: Sequence[LocalTask], room: Path) -> PatchedTasks | None:
    """Return which patch each task is measured with; None for a model that stands for all."""
    if checkpoint.manifest.kind is not CheckpointKind.MULTITASK:
        return None
    (scratch := room / "tasks").mkdir()
    return PatchedTasks(labels={task.id: task.spec.name for task in tasks}, scratch=scratch)


def _pin_transform(name: str) -> PinnedStep:
    card, parameters = load_catalog().check_step("transforms", name, {}, pointer="")
    return PinnedStep(name=card.name, version=card.version, parameters=parameters)


def _pair(found: JsonValue) -> tuple[int, int]:
    match found:
        case [int(correct), int(total)]:
            return correct, total
    raise TypeError(f"the ledger holds {found!r}, expected [correct, total]")
