"""What a sweep tells: every point with its numbers, which one is the best, and the figure of the curve."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from app.domain.checkpoints import FileEntry
from app.domain.recipes import Recipe
from app.domain.sweeps import MeasuredPoint
from app.domain.work import SweepWork
from workers.checkpoints.companions import write_file
from workers.figures import style
from workers.pipelines.curve import Curve, draw_curve

REPORT_FORMAT_VERSION = 1
DATA_FILE = "sweep.json"
SVG_FILE = "sweep.svg"
PNG_FILE = "sweep.png"


@dataclass(frozen=True)
class SweepReport:
    """The report in its two lengths, and what its figure shows."""

    summary: dict[str, JsonValue]  # for the job's result: a point has its mean
    data: dict[str, JsonValue]  # the same, and each task's number at each point
    curve: Curve


def describe(work: SweepWork, points: Sequence[MeasuredPoint], best: MeasuredPoint, recipe: Recipe) -> SweepReport:
    """Return the report; equal sweeps give equal ones. recipe: of the best point."""
    names = {task.id: task.spec.name for task in work.tasks}
    measured = best.measurements[0]
    summary: dict[str, JsonValue] = {
        "format_version": REPORT_FORMAT_VERSION,
        "method": recipe.method,
        "kind": work.space.kind,
        "swept": list(work.space.paths),
        "select_on": {**work.selection.model_dump(), "higher_is_better": measured.higher_is_better},
        "tasks": list(names.values()),
        "n_points": len(points),
        "n_failed": sum(point.mean is None for point in points),
        "best": _told(best),
        "recipe_digest": recipe.digest,
        "points": [_told(point) for point in points],
    }
    detailed: list[JsonValue] = [{**_told(point), "tasks": _by_task(point, names)} for point in points]
    return SweepReport(summary, {**summary, "points": detailed}, _curve(work, points, best))


def write_curve(report: SweepReport, output: Path) -> tuple[FileEntry, ...]:
    """Write data and figure into a folder and return their entries."""
    text = json.dumps(report.data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with style.applied():
        figure = draw_curve(report.curve)
        return (
            write_file(output, DATA_FILE, f"{text}\n".encode()),
            write_file(output, PNG_FILE, style.to_png(figure, report.curve.title)),
            write_file(output, SVG_FILE, style.to_svg(figure, report.curve.title)),
        )


def _told(point: MeasuredPoint) -> dict[str, JsonValue]:
    return {
        "index": point.index,
        "parameters": dict(point.parameters),
        "mean": point.mean,
        "stderr": point.stderr,
        "n": point.n,
        "problem": point.problem,
    }


def _by_task(point: MeasuredPoint, names: dict[str, str]) -> dict[str, JsonValue]:
    return {names[one.task]: {"value": one.value, "stderr": one.stderr, "n": one.n} for one in point.measurements}


def _curve(work: SweepWork, points: Sequence[MeasuredPoint], best: MeasuredPoint) -> Curve:
    """Return what is drawn: over the value of the one parameter that is swept, or over the points by number."""
    metric, split = work.selection.metric, work.selection.split
    path = work.space.paths[0]
    along = [_number(point.parameters[path]) for point in points]
    numbers = [value for value in along if value is not None]
    is_curve = len(work.space.paths) == 1 and len(numbers) == len(points)
    return Curve(
        title=f"{work.merge.recipe.method}: {metric} on {split}",
        x_label=path if is_curve else f"point ({', '.join(work.space.paths)})",
        y_label=metric,
        x=numbers if is_curve else [float(point.index) for point in points],
        mean=[point.mean for point in points],
        errors=[point.stderr for point in points],
        tasks={task.spec.name: [_value(point, task.id) for point in points] for task in work.tasks},
        best=best.index,
    )


def _number(value: JsonValue) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _value(point: MeasuredPoint, task: str) -> float | None:
    return next((one.value for one in point.measurements if one.task == task), None)
