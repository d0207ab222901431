"""Lines, told apart by color, marker and, where they fit, the legend; of many, their mean and range."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from workers.figures import style

MAX_LINES = len(style.COLORS)

Series = Mapping[str, Sequence[float | None]]


def draw_lines(
    axes: Axes, x: Sequence[float], series: Series, *, has_markers: bool = True, has_legend: bool = True
) -> None:
    """Draw a line per series, broken where it has no value; beyond eight, their mean with the range around it.

    has_markers: one at every value; of long lines, at every tenth.
    """
    values = {name: _numbers(line) for name, line in series.items()}
    if len(values) > MAX_LINES:
        _draw_range(axes, x, values)
    else:
        for index, (name, line) in enumerate(values.items()):
            axes.plot(
                x, line, color=style.COLORS[index], label=style.shorten(name),
                marker=style.MARKERS[index], markevery=1 if has_markers else (index, 10),
            )  # fmt: skip
    if has_legend and len(values) > 1:
        axes.legend()


def draw_path(axes: Axes, x: Sequence[float], y: Sequence[float], *, index: int, label: str) -> None:
    """Draw a line that has values of x of its own. index: which color and marker it takes."""
    axes.plot(x, y, color=style.COLORS[index], marker=style.MARKERS[index], label=style.shorten(label))


def _draw_range(axes: Axes, x: Sequence[float], values: Mapping[str, NDArray[np.float64]]) -> None:
    stacked = np.ma.masked_invalid(np.stack(list(values.values())))
    axes.fill_between(
        x, stacked.min(0), stacked.max(0), color=style.COLORS[5], alpha=0.35, label="range", linewidth=0.0
    )
    axes.plot(x, stacked.mean(0), color=style.COLORS[0], marker="o", markersize=4.0, label=f"mean of {len(values)}")


def _numbers(line: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in line], dtype=np.float64)
