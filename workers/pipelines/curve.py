"""The figure of a sweep: the mean over the tasks with its standard error, each task alone, and the best point."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from workers.figures import lines, style

Values = Sequence[float | None]


@dataclass(frozen=True)
class Curve:
    """What is drawn: positions along x, the mean with its errors, the tasks, and which point is the best."""

    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    mean: Values
    errors: Values
    tasks: Mapping[str, Values]
    best: int


def draw_curve(curve: Curve) -> Figure:
    """Return the figure; of more than eight tasks, their mean and range."""
    figure, (axes,) = style.new_figure(1, width=9.0, height=5.2)
    order = sorted(range(len(curve.x)), key=lambda at: curve.x[at])
    x = [curve.x[at] for at in order]
    lines.draw_lines(
        axes, x, {name: [values[at] for at in order] for name, values in curve.tasks.items()}, has_legend=False
    )
    there = [(curve.x[at], value, curve.errors[at] or 0.0) for at in order if (value := curve.mean[at]) is not None]
    along, means, errors = zip(*there, strict=True)
    axes.errorbar(along, means, yerr=errors, color=style.INK, linewidth=3.2, capsize=4.0, label="mean")
    axes.plot(
        [curve.x[curve.best]], [curve.mean[curve.best] or 0.0], linestyle="none", marker="o", markersize=16.0,
        markerfacecolor="none", markeredgecolor=style.INK, markeredgewidth=2.0, label="best",
    )  # fmt: skip
    axes.set(xlabel=curve.x_label, ylabel=curve.y_label, title=curve.title)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
