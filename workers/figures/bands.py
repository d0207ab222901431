"""Lines with a range around them, and levels to compare them with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from workers.figures import style

Numbers = Sequence[float | None]


@dataclass(frozen=True)
class Band:
    """A line, and where it may lie; None where it is not defined."""

    middle: Numbers
    low: Numbers
    high: Numbers


def draw_bands(axes: Axes, x: Sequence[float], bands: Mapping[str, Band]) -> None:
    """Draw each line with its range shaded; eight at most."""
    for index, (name, band) in enumerate(bands.items()):
        color, marker = style.COLORS[index], style.MARKERS[index]
        axes.fill_between(x, _numbers(band.low), _numbers(band.high), color=color, alpha=0.18, linewidth=0.0)
        axes.plot(x, _numbers(band.middle), color=color, marker=marker, label=style.shorten(name, 30))


def draw_level(axes: Axes, level: float | None, name: str, *, dashes: str = "--") -> None:
    """Draw a level line, if there is one to draw."""
    if level is not None:
        axes.axhline(level, color=style.INK, linewidth=1.6, linestyle=dashes, label=name, zorder=1)


def _numbers(values: Numbers) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
