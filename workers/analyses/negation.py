"""Negation: subtract a task vector to forget its task, as far as the control tasks allow.

The coefficient is the one that keeps least of the target while the controls keep a share of what the base model
scores; it is chosen on validation and measured once on the split that was asked for.

Source: Ilharco et al. 2022, arXiv:2212.04089, section 3 (forgetting via negation; control accuracy of at least 95 % of
    the pre-trained model's).
"""

from typing import Annotated

from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field

from app.domain.parameters import Parameters
from workers.analysis_contract import Bench, Found, Merged, Names, analysis
from workers.figures import lines, style
from workers.numerics.numbers import mean, normalize

TUNED_ON = "validation"
COEFFICIENTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

Coefficient = Annotated[float, Field(ge=0.0, le=100.0)]


class NegationParameters(Parameters):
    """Parameters of `negation`."""

    coefficients: Annotated[
        tuple[Coefficient, ...], Field(min_length=1, max_length=200, description="α of θ₀ − α τ that are tried.")
    ] = COEFFICIENTS
    min_control: Annotated[
        float, Field(ge=0.0, le=1.0, description="Share of the base model's score that the controls must keep.")
    ] = 0.95


class Negated(BaseModel):
    """What θ₀ − α τ scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    coefficient: float = Field(description="α; 0 is the base model.")
    target: float | None = Field(description="The metric of the task to forget.")
    target_kept: float | None = Field(description="Share of the base model's score on it; less is more forgotten.")
    controls: list[float | None] = Field(description="The metrics of the tasks to keep.")
    control_kept: float | None = Field(description="Mean over the controls of the share of the base model's score.")


class NegationFound(Found):
    """The curve on validation, and what the chosen coefficient scores on the split that was asked for."""

    chosen: float = Field(description="The coefficient; 0 if no other one keeps the controls.")
    validation: list[Negated] = Field(description="Every coefficient, rising.")
    base: Negated = Field(description="The base model on the split.")
    negated: Negated = Field(description="The chosen coefficient on the split.")
    finetuned_target: float | None = Field(description="What the model that is subtracted scores on the target.")


def draw(found: NegationFound, names: Names) -> Figure:
    """Return target and controls over the coefficient on validation, and the chosen one with what it scores."""
    figure, (axes,) = style.new_figure(1, width=8.5, height=5.4)
    x = [one.coefficient for one in found.validation]
    shown = names.tasks[1 : lines.MAX_LINES]
    series = {f"forget: {names.tasks[0]}": [one.target for one in found.validation]}
    for index, name in enumerate(shown):
        series[f"keep: {name}"] = [one.controls[index] for one in found.validation]
    lines.draw_lines(axes, x, series, has_legend=False)
    axes.axvline(found.chosen, color=style.INK, linewidth=1.6, linestyle="--", label=f"chosen: {found.chosen:g}")
    if found.negated.target is not None:
        axes.plot(
            found.chosen, found.negated.target, marker="*", color=style.COLORS[0], markeredgecolor="white",
            markersize=20.0, linestyle="none", label="target, measured", zorder=5,
        )  # fmt: skip
    axes.set(xlabel="α of θ₀ − α τ", ylabel="score on validation", ylim=(0.0, None))
    axes.set_title(f"Forgetting {style.shorten(names.tasks[0])}")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@analysis(
    name="negation",
    title="Negation",
    summary="Subtracts a task vector to forget its task, as far as the control tasks allow.",
    source="Ilharco et al. 2022, arXiv:2212.04089, section 3",
    parameters=NegationParameters,
    found=NegationFound,
    draw=draw,
    models=(1, 1),
    tasks="target_and_controls",
    tunes=True,
)
def examine(bench: Bench, parameters: NegationParameters) -> NegationFound:
    """Return the curve and the choice."""
    coefficients = sorted({0.0, *parameters.coefficients})
    bench.expect((len(coefficients) + 2) * bench.n_tasks + 1)
    curve: list[Negated] = []
    for coefficient in coefficients:
        with bench.combine((-coefficient,)) as merged:
            curve.append(_measure(merged, bench, coefficient, curve[0] if curve else None, TUNED_ON))
    chosen = _choose(curve, parameters.min_control)
    with bench.combine((0.0,)) as merged:
        base = _measure(merged, bench, 0.0, None)
    with bench.combine((-chosen,)) as merged:
        negated = _measure(merged, bench, chosen, base)
    with bench.combine((1.0,)) as merged:
        finetuned = merged.measure(0).value
    return NegationFound(chosen=chosen, validation=curve, base=base, negated=negated, finetuned_target=finetuned)


def _measure(
    merged: Merged, bench: Bench, coefficient: float, base: Negated | None, split: str | None = None
) -> Negated:
    """Return what a model scores, on the controls relative to the base model; without one it is the base model."""
    target, *controls = (merged.measure(task, split) for task in range(bench.n_tasks))
    values = [one.value for one in controls]
    references = values if base is None else base.controls
    reference = target.value if base is None else base.target
    kept = [
        normalize(one.value, reference, higher_is_better=one.higher_is_better)
        for one, reference in zip(controls, references, strict=True)
    ]
    return Negated(
        coefficient=coefficient,
        target=target.value,
        target_kept=normalize(target.value, reference, higher_is_better=target.higher_is_better),
        controls=values,
        control_kept=mean(kept),
    )


def _choose(curve: list[Negated], min_control: float) -> float:
    """Return the coefficient that keeps least of the target and enough of the controls; of equal ones the smallest."""
    fitting = [
        (one.target_kept, one.coefficient)
        for one in curve
        if one.target_kept is not None and one.control_kept is not None and one.control_kept >= min_control
    ]
    return min(fitting, default=(0.0, 0.0))[1]
