"""What a sweep tells: every point with its numbers, which one is the best, and the figure: a curve, or a surface."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from pydantic import JsonValue

from app.domain.checkpoints import FileEntry
from app.domain.recipes import Recipe
from app.domain.sweeps import Grid, MeasuredPoint, find_area
from app.domain.work import SweepWork
from workers.checkpoints.companions import write_file
from workers.figures import style
from workers.pipelines.curve import Curve, draw_curve
from workers.pipelines.surface import Side, Surface, draw_surface

REPORT_FORMAT_VERSION = 1
DATA_FILE = "sweep.json"
SVG_FILE = "sweep.svg"
PNG_FILE = "sweep.png"


@dataclass(frozen=True)
class SweepReport:
    """The report in its two lengths, and what its figure shows."""

    summary: dict[str, JsonValue]  # for the job's result: a point has its mean
    data: dict[str, JsonValue]  # the same, and each task's number at each point
    title: str
    draw: Callable[[], Figure]


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
        "area": _area(work, points),
        "points": [_told(point) for point in points],
    }
    detailed: list[JsonValue] = [{**_told(point), "tasks": _by_task(point, names)} for point in points]
    title = f"{recipe.method}: {work.selection.metric} on {work.selection.split}"
    return SweepReport(summary, {**summary, "points": detailed}, title, _choose_figure(work, points, best, title))


def write_curve(report: SweepReport, output: Path) -> tuple[FileEntry, ...]:
    """Write data and figure into a folder and return their entries."""
    text = json.dumps(report.data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with style.applied():
        figure = report.draw()
        return (
            write_file(output, DATA_FILE, f"{text}\n".encode()),
            write_file(output, PNG_FILE, style.to_png(figure, report.title)),
            write_file(output, SVG_FILE, style.to_svg(figure, report.title)),
        )


def find_surface(work: SweepWork, points: Sequence[MeasuredPoint], best: MeasuredPoint, title: str) -> Surface | None:
    """Return what is drawn of a grid of two axes; None of any other sweep.

    Numbers stand in ascending order, words as they were given; the longer axis lies across.
    """
    varied = _varied(work, points)
    if len(varied) != 2 or not isinstance(work.space, Grid):
        return None
    down, across = sorted((_ordered(points, path) for path in varied), key=lambda axis: len(axis[1]))
    means = {_place(point, down, across): point.mean for point in points}
    return Surface(
        title=title,
        rows=_side(down),
        columns=_side(across),
        means=[[means[row, column] for column in range(len(across[1]))] for row in range(len(down[1]))],
        metric=work.selection.metric,
        higher_is_better=best.measurements[0].higher_is_better,
        best=_place(best, down, across),
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


def _area(work: SweepWork, points: Sequence[MeasuredPoint]) -> JsonValue:
    """Return the areas under the curves of the one number that is swept; None where something else is."""
    varied = _varied(work, points)
    x = _numbers(points, varied[0])
    if len(varied) > 1 or x is None or len(set(x)) < 2:
        return None
    tasks = {task.spec.name: find_area(x, [_value(point, task.id) for point in points]) for task in work.tasks}
    mean = find_area(x, [point.mean for point in points])
    return {"path": varied[0], "low": min(x), "high": max(x), "mean": mean, "tasks": dict(tasks)}


def _choose_figure(
    work: SweepWork, points: Sequence[MeasuredPoint], best: MeasuredPoint, title: str
) -> Callable[[], Figure]:
    surface = find_surface(work, points, best, title)
    if surface is not None:
        return lambda: draw_surface(surface)
    return lambda: draw_curve(_curve(work, points, best, title))


def _varied(work: SweepWork, points: Sequence[MeasuredPoint]) -> tuple[str, ...]:
    """Return the paths that have more than one value; the first, where none has."""
    values = {path: {json.dumps(point.parameters[path]) for point in points} for path in work.space.paths}
    return tuple(path for path, found in values.items() if len(found) > 1) or work.space.paths[:1]


def _curve(work: SweepWork, points: Sequence[MeasuredPoint], best: MeasuredPoint, title: str) -> Curve:
    """Return what is drawn: over the value of the one number that is swept, or over the points by number."""
    varied = _varied(work, points)
    numbers = _numbers(points, varied[0]) if len(varied) == 1 else None
    return Curve(
        title=title,
        x_label=f"point ({', '.join(varied)})" if numbers is None else varied[0],
        y_label=work.selection.metric,
        x=[float(point.index) for point in points] if numbers is None else numbers,
        mean=[point.mean for point in points],
        errors=[point.stderr for point in points],
        tasks={task.spec.name: [_value(point, task.id) for point in points] for task in work.tasks},
        best=best.index,
    )


Axis = tuple[str, list[JsonValue]]  # path, values in the order in which they are drawn


def _ordered(points: Sequence[MeasuredPoint], path: str) -> Axis:
    numbers = _numbers(points, path)
    by_text = {json.dumps(point.parameters[path]): point.parameters[path] for point in points}
    values = list(by_text.values())
    return path, values if numbers is None else sorted(values, key=lambda value: _number(value) or 0.0)


def _place(point: MeasuredPoint, down: Axis, across: Axis) -> tuple[int, int]:
    row, column = (axis[1].index(point.parameters[axis[0]]) for axis in (down, across))
    return row, column


def _side(axis: Axis) -> Side:
    path, values = axis
    return Side(path, [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values])


def _numbers(points: Sequence[MeasuredPoint], path: str) -> list[float] | None:
    """Return a path's value at each point; None where one is no number."""
    found = [_number(point.parameters[path]) for point in points]
    numbers = [number for number in found if number is not None]
    return numbers if len(numbers) == len(found) else None


def _number(value: JsonValue) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _value(point: MeasuredPoint, task: str) -> float | None:
    return next((one.value for one in point.measurements if one.task == task), None)
