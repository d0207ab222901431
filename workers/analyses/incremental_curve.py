"""The incremental curve: tune on the first tasks, freeze, and add models one by one.

A method whose parameter stays right as models come needs no validation data of the tasks to come; the curve that is
tuned again at every step shows what freezing costs.

Source: Davari & Belilovsky 2023, arXiv:2312.06795 (Model Breadcrumbs), section 4.3, figure 4.
"""

from typing import Annotated

from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field

from app.domain.errors import FieldProblem, InvalidParameters
from app.domain.parameters import NestedMethod, Parameters
from workers.analysis_contract import Bench, Found, Names, analysis
from workers.figures import bands, lines, style
from workers.numerics.numbers import mean
from workers.statistics.scores import Scores, score

TUNED_ON = "validation"
VALUES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class IncrementalParameters(Parameters):
    """Parameters of `incremental_curve`."""

    merge: Annotated[NestedMethod, Field(description="How models are merged.")] = NestedMethod(method="task_arithmetic")
    parameter: Annotated[
        str, Field(min_length=1, max_length=128, description="The method's parameter that is tuned.")
    ] = "scaling_coefficient"
    values: Annotated[
        tuple[float, ...], Field(min_length=1, max_length=100, description="Its values that are tried.")
    ] = VALUES
    n_first: Annotated[int, Field(ge=1, le=256, description="How many tasks it is tuned on before it is frozen.")] = 2
    retune: Annotated[bool, Field(description="Also tune again whenever a model is added, for comparison.")] = True


class Point(BaseModel):
    """The merge of the first n models, measured on their tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_models: int
    value: float = Field(description="Of the parameter.")
    scores: Scores = Field(description="On the tasks of the merged models, on the split that was asked for.")


class Trial(BaseModel):
    """One value of the parameter, tried on validation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_models: int
    value: float
    mean: float | None = Field(description="Normalized mean over the tasks of the merged models.")


class IncrementalFound(Found):
    """The curve with the parameter frozen, and tuned again at every step."""

    individual: list[float | None] = Field(description="What each task's own model scores on it.")
    frozen_value: float
    frozen: list[Point]
    retuned: list[Point] = Field(description="Empty without `retune`.")
    trials: list[Trial] = Field(description="Everything that was tried on validation.")


def draw(found: IncrementalFound, _names: Names) -> Figure:
    """Return the normalized mean over the number of models, and what the tuning found."""
    has_retuned = bool(found.retuned)
    figure, axes = style.new_figure(2 if has_retuned else 1, width=12.0 if has_retuned else 7.0, height=5.2)
    sizes = [float(point.n_models) for point in found.frozen]
    curves = {f"frozen at {found.frozen_value:g}": [point.scores.normalized_mean for point in found.frozen]}
    if has_retuned:
        curves["tuned again"] = [point.scores.normalized_mean for point in found.retuned]
    lines.draw_lines(axes[0], sizes, curves, has_legend=False)
    bands.draw_level(axes[0], 1.0, "individual models")
    axes[0].set(xlabel="merged models", ylabel="normalized score, mean of their tasks")
    axes[0].set_title("Models added one by one")
    axes[0].legend()
    if has_retuned:
        lines.draw_lines(
            axes[1],
            sizes,
            {"frozen": [found.frozen_value] * len(sizes), "tuned again": [p.value for p in found.retuned]},
        )
        axes[1].set(xlabel="merged models", ylabel="value of the parameter")
        axes[1].margins(y=0.15)
        axes[1].set_title("What was chosen on validation")
    for panel in axes:
        panel.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
    return figure


@analysis(
    name="incremental_curve",
    title="Incremental curve",
    summary="Tunes a merge on the first tasks, freezes it, and adds models one by one.",
    source="Davari & Belilovsky 2023, arXiv:2312.06795, section 4.3",
    parameters=IncrementalParameters,
    found=IncrementalFound,
    draw=draw,
    models=(2, None),
    tasks="one_per_model",
    tunes=True,
    nested=("merge",),
    merges_subsets=True,
)
def examine(bench: Bench, parameters: IncrementalParameters) -> IncrementalFound:
    """Return the curves; values are chosen on the validation split alone.

    Raises: InvalidParameters, Invalid for a parameter, a value or a number of models that the method does not take.
    """
    run = _Run(bench, parameters)
    return run.walk()


class _Run:
    """One analysis: what the individual models score, and every trial so far."""

    def __init__(self, bench: Bench, parameters: IncrementalParameters) -> None:
        self._bench = bench
        self._parameters = parameters
        self._sizes = self._check()
        self._trials: list[Trial] = []
        self._individual: list[float | None] = []
        self._own_on_validation: list[float | None] = []
        self._rises: list[bool] = []

    def walk(self) -> IncrementalFound:
        """Measure everything, in the order of the models."""
        parameters, first = self._parameters, self._parameters.n_first
        self._bench.expect(self._count_runs())
        self._measure_individual()
        frozen_value = self._tune(first)
        frozen = [self._measure(size, frozen_value) for size in self._sizes]
        retuned: list[Point] = []
        if parameters.retune:
            for point in frozen:
                value = frozen_value if point.n_models == first else self._tune(point.n_models)
                retuned.append(point if value == point.value else self._measure(point.n_models, value))
        return IncrementalFound(
            individual=self._individual,
            frozen_value=frozen_value,
            frozen=frozen,
            retuned=retuned,
            trials=self._trials,
        )

    def _check(self) -> list[int]:
        bench, first = self._bench, self._parameters.n_first
        if first > bench.n_models:
            fault = f"is {first}, there are {bench.n_models} models to add; expected at most as many"
            raise InvalidParameters(f"n_first {fault}.", errors=[FieldProblem("/parameters/n_first", fault)])
        sizes = list(range(first, bench.n_models + 1))
        for size in (sizes[0], sizes[-1]):
            for value in self._parameters.values:
                bench.check(self._method(value), size)
        return sizes

    def _method(self, value: float) -> NestedMethod:
        merge = self._parameters.merge
        return merge.model_copy(update={"parameters": {**merge.parameters, self._parameters.parameter: value}})

    def _count_runs(self) -> int:
        parameters, n_values = self._parameters, len(self._parameters.values)
        tuned = self._sizes if parameters.retune else self._sizes[:1]
        measured = sum(self._sizes) * (2 if parameters.retune else 1)
        return 2 * self._bench.n_tasks + n_values * sum(tuned) + measured

    def _measure_individual(self) -> None:
        for task in range(self._bench.n_tasks):
            with self._bench.combine([float(index == task) for index in range(self._bench.n_models)]) as merged:
                found = merged.measure(task)
                self._own_on_validation.append(merged.measure(task, TUNED_ON).value)
            self._individual.append(found.value)
            self._rises.append(found.higher_is_better)

    def _tune(self, size: int) -> float:
        """Return the value with the best normalized mean on validation; of equal ones the first."""
        best: Trial | None = None
        for value in self._parameters.values:
            with self._bench.merge(self._method(value), range(size)) as merged:
                values = [merged.measure(task, TUNED_ON).value for task in range(size)]
            relative = score(values, self._own_on_validation[:size], self._rises[:size])
            trial = Trial(n_models=size, value=value, mean=mean(relative.normalized))
            self._trials.append(trial)
            if best is None or _goodness(trial) > _goodness(best):
                best = trial
        return best.value if best is not None else self._parameters.values[0]

    def _measure(self, size: int, value: float) -> Point:
        with self._bench.merge(self._method(value), range(size)) as merged:
            values = [merged.measure(task).value for task in range(size)]
        return Point(n_models=size, value=value, scores=score(values, self._individual[:size], self._rises[:size]))


def _goodness(trial: Trial) -> float:
    return float("-inf") if trial.mean is None else trial.mean
