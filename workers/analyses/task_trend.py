"""The trend over the number of tasks: what a merge of 1, 2, …, n models scores, over all subsets or a sample of them.

Source: Davari & Belilovsky 2023, arXiv:2312.06795 (Model Breadcrumbs), figure 3; Tang et al. 2023, arXiv:2310.04742,
    figure 5.
"""

import itertools
import random
from math import comb
from typing import Annotated, ClassVar

from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field

from app.domain.parameters import NestedMethod, Parameters
from workers.analysis_contract import Bench, Found, Names, analysis
from workers.figures import bands, style
from workers.figures.bands import Band
from workers.numerics.numbers import mean
from workers.statistics.scores import Scores, score


class TaskTrendParameters(Parameters):
    """Parameters of `task_trend`."""

    merge: Annotated[NestedMethod, Field(description="How models are merged, the same for every subset.")] = (
        NestedMethod(method="task_arithmetic")
    )
    max_subsets: Annotated[
        int, Field(ge=1, le=1000, description="Subsets of each size at most; of more, a sample drawn by the seed.")
    ] = 10
    seed: Annotated[int, Field(ge=0, lt=2**63, description="Of the sample of subsets.")] = 0


class SubsetScores(BaseModel):
    """What the merge of one subset scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: list[int] = Field(description="Indices of the models that are merged.")
    all_tasks: Scores = Field(description="On all tasks, in the request's order.")
    mean_of_merged: float | None = Field(description="Mean over the tasks whose models are merged.")
    normalized_mean_of_merged: float | None


class Spread(BaseModel):
    """Mean and range over subsets; null where none is defined."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float | None
    low: float | None
    high: float | None


class SizeScores(BaseModel):
    """What merges of some number of models score; normalized by each task's individual model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_models: int
    n_subsets: int
    n_possible: int = Field(description="How many subsets of this size there are.")
    merged_tasks: Spread = Field(description="Normalized mean over the tasks whose models are merged.")
    all_tasks: Spread = Field(description="Normalized mean over all tasks.")


class TaskTrendFound(Found):
    """Scores by the number of merged models."""

    only_in_file: ClassVar[frozenset[str]] = frozenset({"subsets"})

    individual: list[float | None] = Field(description="What each task's own model scores on it.")
    base: Scores = Field(description="What the base model scores.")
    sizes: list[SizeScores]
    subsets: list[SubsetScores]


def draw(found: TaskTrendFound, names: Names) -> Figure:
    """Return mean and range over subsets by their size, on the merged tasks and on all."""
    figure, (axes,) = style.new_figure(1, width=9.5, height=5.2)
    sizes = [float(size.n_models) for size in found.sizes]
    spreads = {
        "on merged tasks": [size.merged_tasks for size in found.sizes],
        "on all tasks": [size.all_tasks for size in found.sizes],
    }
    lines = {
        name: Band(*zip(*((one.mean, one.low, one.high) for one in spread), strict=True))
        for name, spread in spreads.items()
    }
    bands.draw_bands(axes, sizes, lines)
    bands.draw_level(axes, 1.0, "individual models")
    bands.draw_level(axes, found.base.normalized_mean, "base model", dashes=":")
    axes.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
    axes.set(xlabel="merged models", ylabel=f"normalized score, mean of {len(names.tasks)} tasks")
    axes.set_title("Trend over the number of tasks")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@analysis(
    name="task_trend",
    title="Trend over the number of tasks",
    summary="What merges of 1, 2, …, n models score, over all subsets or a seeded sample of them.",
    source="Davari & Belilovsky 2023, arXiv:2312.06795, figure 3",
    parameters=TaskTrendParameters,
    found=TaskTrendFound,
    draw=draw,
    models=(2, None),
    tasks="one_per_model",
    nested=("merge",),
    merges_subsets=True,
)
def examine(bench: Bench, parameters: TaskTrendParameters) -> TaskTrendFound:
    """Return the scores: each subset is merged once and measured on every task."""
    subsets = _choose(bench, parameters)
    tasks = range(bench.n_tasks)
    bench.expect(2 * len(tasks) + len(subsets) * len(tasks))
    individual: list[float | None] = []
    rises: list[bool] = []
    for task in tasks:
        with bench.combine([1.0 if index == task else 0.0 for index in tasks]) as merged:
            found = merged.measure(task)
        individual.append(found.value)
        rises.append(found.higher_is_better)
    with bench.combine([0.0] * bench.n_models) as merged:
        base = score([merged.measure(task).value for task in tasks], individual, rises)
    measured: list[SubsetScores] = []
    for models in subsets:
        with bench.merge(parameters.merge, models) as merged:
            scores = score([merged.measure(task).value for task in tasks], individual, rises)
        measured.append(
            SubsetScores(
                models=list(models),
                all_tasks=scores,
                mean_of_merged=mean([scores.values[task] for task in models]),
                normalized_mean_of_merged=mean([scores.normalized[task] for task in models]),
            )
        )
    return TaskTrendFound(individual=individual, base=base, sizes=_by_size(measured, bench.n_models), subsets=measured)


def _choose(bench: Bench, parameters: TaskTrendParameters) -> list[tuple[int, ...]]:
    """Return the subsets by size, each size in lexicographic order; a size is drawn independently of the others."""
    fewest, most = bench.count_models(parameters.merge)
    chosen: list[tuple[int, ...]] = []
    for size in range(fewest, most + 1):
        bench.check(parameters.merge, size)
        if comb(bench.n_models, size) <= parameters.max_subsets:
            chosen += itertools.combinations(range(bench.n_models), size)
            continue
        draw_subset = random.Random(f"{parameters.seed}:{size}")
        drawn: set[tuple[int, ...]] = set()
        while len(drawn) < parameters.max_subsets:
            drawn.add(tuple(sorted(draw_subset.sample(range(bench.n_models), size))))
        chosen += sorted(drawn)
    return chosen


def _by_size(measured: list[SubsetScores], n_models: int) -> list[SizeScores]:
    found: list[SizeScores] = []
    for size, group in itertools.groupby(measured, key=lambda one: len(one.models)):
        subsets = list(group)
        found.append(
            SizeScores(
                n_models=size,
                n_subsets=len(subsets),
                n_possible=comb(n_models, size),
                merged_tasks=_spread([one.normalized_mean_of_merged for one in subsets]),
                all_tasks=_spread([one.all_tasks.normalized_mean for one in subsets]),
            )
        )
    return found


def _spread(values: list[float | None]) -> Spread:
    known = [value for value in values if value is not None]
    return Spread(mean=mean(known), low=min(known, default=None), high=max(known, default=None))
