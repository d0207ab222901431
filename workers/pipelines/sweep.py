"""Sweep: merge at many points, measure each on validation, and write the best merge as any merge is written.

Losers are never stored. Where the result is a dense model that fits into memory it is measured from there; points of a
grid are merged several at a time, as many as fit. Else each is merged into a folder that is removed again. The numbers
are the same either way.
"""

import json
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module

from app.domain.catalog import load_catalog
from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import Invalid, JobError, NotFinite
from app.domain.jobs import Progress
from app.domain.recipes import Recipe
from app.domain.sweeps import Grid, MeasuredPoint, Space, Values, find_best, recipe_at
from app.domain.tasks import Measurement
from app.domain.work import CheckpointOutcome, EvaluateWork, MergeWork, PatchedTasks, SweepOutcome, SweepWork
from workers.checkpoints.model import Models
from workers.contract import RecipeCode
from workers.memory import free_bytes
from workers.model_contract import Evaluator
from workers.pipelines.evaluate import evaluate
from workers.pipelines.held_points import HeldPoints
from workers.pipelines.sweep_report import describe, write_curve

HELD_SHARE = 0.5  # of the memory that is free: a held model may take so much
OnProgress = Callable[[Progress], None]
Proposals = Generator[Values, float | None, None]


@dataclass(frozen=True)
class Workshop:
    """What a sweep merges and measures with."""

    evaluators: Mapping[str, Evaluator]  # by the kind of task
    load_code: Callable[[Recipe], RecipeCode]
    merge: Callable[[MergeWork, OnProgress], CheckpointOutcome]  # into a folder
    device: str = "cpu"
    threads: int | None = None
    room_bytes: int = field(default_factory=lambda: int(free_bytes() * HELD_SHARE))  # for a held model


def sweep(
    work: SweepWork, workshop: Workshop, on_progress: OnProgress, on_point: Callable[[MeasuredPoint], None]
) -> SweepOutcome:
    """Measure every point, write the best merge and the curve into the work's output folder.

    Raises: JobError where no point could be measured; else as merging and measuring do.
    """
    work.scratch.mkdir()
    progress = _SweepProgress(on_progress, work.space.n_points)
    points = _measure_all(work, _Bench(work, workshop, progress), progress, on_point)
    best = find_best(points)
    if best is None:
        raise JobError(
            f"None of the {len(points)} points could be measured; the first: {points[0].problem} Sweep other values."
        )
    recipe = recipe_at(load_catalog(), work.merge.recipe, best.parameters)
    merged = workshop.merge(work.merge.model_copy(update={"recipe": recipe}), progress.merge)
    report = describe(work, points, best, recipe)
    return SweepOutcome(
        manifest=merged.manifest,
        report=merged.report,
        recipe=recipe,
        best=best,
        curve=report.summary,
        curve_files=write_curve(report, work.merge.output),
    )


def _measure_all(
    work: SweepWork, bench: "_Bench", progress: "_SweepProgress", on_point: Callable[[MeasuredPoint], None]
) -> list[MeasuredPoint]:
    """Measure the points in order; what was measured before, by an earlier attempt or at an equal point, is reused."""
    known = {_key(point.parameters): point for point in work.measured}
    points: list[MeasuredPoint] = []
    proposals = _propose(work.space)
    values = next(proposals, None)
    while values is not None:
        key = _key(values)
        if key in known:
            point = known[key].model_copy(update={"index": len(points)})
        else:
            point = bench.measure(len(points), values)
            on_point(point)
        known[key] = point
        points.append(point)
        progress.done = len(points)
        values = _next(proposals, _goodness(point))
    return points


def _propose(space: Space) -> Proposals:
    if isinstance(space, Grid):
        return _walk(space)
    proposals: Proposals = import_module("workers.pipelines.searching").propose(space)  # Optuna, for a search alone
    return proposals


def _walk(grid: Grid) -> Proposals:
    for values in grid.points():  # noqa: UP028 (an iterator takes no answers)
        yield values


def _coming_points(work: SweepWork) -> dict[str, Values]:
    """Return the points that are known before any is measured, and are not measured yet, in order, by their key."""
    measured = {_key(point.parameters) for point in work.measured}
    points = {_key(values): values for values in (work.space.points() if isinstance(work.space, Grid) else ())}
    return {key: values for key, values in points.items() if key not in measured}


def _next(proposals: Proposals, goodness: float | None) -> Values | None:
    try:
        return proposals.send(goodness)
    except StopIteration:
        return None


def _key(values: Values) -> str:
    return json.dumps(values, sort_keys=True)


def _goodness(point: MeasuredPoint) -> float | None:
    if point.mean is None:
        return None
    return point.mean if point.measurements[0].higher_is_better else -point.mean


class _Bench:
    """Merges and measures one point after the other."""

    def __init__(self, work: SweepWork, workshop: Workshop, progress: "_SweepProgress") -> None:
        self._work = work
        self._workshop = workshop
        self._progress = progress
        self._catalog = load_catalog()
        self._coming = _coming_points(work)
        self._held = HeldPoints(
            work.merge,
            work.scratch / "held",
            workshop.load_code,
            Models(workshop.device),
            workshop.threads,
            workshop.room_bytes,
        )

    def measure(self, index: int, values: Values) -> MeasuredPoint:
        """Return the point with what was measured there, or with the reason why nothing could be."""
        self._coming.pop(_key(values), None)
        try:
            recipe = recipe_at(self._catalog, self._work.merge.recipe, values)
        except Invalid as error:  # between the corners of a search
            return MeasuredPoint(index=index, parameters=values, problem=error.detail)
        try:
            found = self._measure(recipe)
        except NotFinite as error:  # the point loses; any other error ends the sweep
            return MeasuredPoint(index=index, parameters=values, problem=error.detail)
        metric = self._work.selection.metric
        measurements = tuple(one for one in found if one.name == metric)
        point = MeasuredPoint(index=index, parameters=values, measurements=measurements)
        undefined = f"{metric} is undefined on some task."
        return point if point.mean is not None else point.model_copy(update={"problem": undefined})

    def _measure(self, recipe: Recipe) -> tuple[Measurement, ...]:
        evaluators, device, on_progress = self._workshop.evaluators, self._workshop.device, self._progress.measure
        plan = self._held.find_plan(recipe)
        if plan is None:
            with self._stored(recipe) as checkpoint:
                return evaluate(self._evaluation(checkpoint), evaluators, on_progress, device=device)
        with self._held.merged(recipe, plan, self._following(), self._progress.merge_points) as checkpoint:
            order = self._evaluation(checkpoint)
            return evaluate(order, evaluators, on_progress, device=device, models=self._held.models)

    def _following(self) -> Iterator[Recipe]:
        """Yield the recipes of the points that will be measured next, as far as they are known."""
        for values in self._coming.values():
            with suppress(Invalid):
                yield recipe_at(self._catalog, self._work.merge.recipe, values)

    @contextmanager
    def _stored(self, recipe: Recipe) -> Iterator[LocalCheckpoint]:
        """Yield the merge in a folder; it is gone afterwards."""
        folder = self._work.scratch / "merged"
        output = folder / "output"
        (folder / "tasks").mkdir(parents=True)
        output.mkdir()
        try:
            order = self._work.merge.model_copy(update={"recipe": recipe, "output": output})
            manifest = self._workshop.merge(order, lambda _: None).manifest
            yield LocalCheckpoint(id="merged", path=output, manifest=manifest)
        finally:
            shutil.rmtree(folder)

    def _evaluation(self, checkpoint: LocalCheckpoint) -> EvaluateWork:
        work = self._work
        scratch = work.scratch / "merged"
        return EvaluateWork(
            checkpoint=checkpoint,
            tasks=work.tasks,
            base_models=work.base_models,
            split={task.id: work.selection.split for task in work.tasks},
            patched=PatchedTasks(labels=work.labels, scratch=scratch / "tasks") if work.labels else None,
            adapter_base=work.merge.base_model,
            scratch=scratch / "fused",
        )


class _SweepProgress:
    """Turns the progress of one point, and of the last merge, into that of the sweep."""

    def __init__(self, on_progress: OnProgress, n_points: int) -> None:
        self._on_progress = on_progress
        self._n_points = n_points
        self._began_at = time.monotonic()
        self._first: int | None = None  # the first point that is measured by this attempt
        self.done = 0

    def measure(self, progress: Progress) -> None:
        """Report how far the measuring is: a point is a step."""
        if self._first is None:
            self._first = self.done
        done = self.done + min(1.0, progress.fraction)
        elapsed = time.monotonic() - self._began_at
        per_point = elapsed / (done - self._first) if done > self._first else None
        left = None if per_point is None else per_point * (self._n_points + 1 - done)
        self._say("measuring points", done, left)

    def merge_points(self, _progress: Progress) -> None:
        """Report that points are merged before they are measured."""
        self._say("merging points", self.done, None)

    def merge(self, progress: Progress) -> None:
        """Report how far the merge of the best point is."""
        self._say("merging the best", self._n_points + progress.fraction, progress.eta_seconds)

    def _say(self, stage: str, done: float, left: float | None) -> None:
        self._on_progress(
            Progress(
                stage=stage,
                fraction=min(1.0, done / (self._n_points + 1)),
                done=self.done,
                total=self._n_points,
                unit="points",
                eta_seconds=left,
            )
        )
