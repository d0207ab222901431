"""The figure of a sweep over two axes: the mean over the tasks at every pair of values, the best one framed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from matplotlib.figure import Figure

from workers.figures import matrices, style
from workers.figures.matrices import Cells, Scale

INCHES_PER_CELL = 0.85
SMALLEST, LARGEST = 3.0, 9.5  # inches, of the cells as a whole
MAX_PATH = 30  # characters


@dataclass(frozen=True)
class Side:
    """One axis: what is swept, and its values in order."""

    path: str
    values: Sequence[str]


@dataclass(frozen=True)
class Surface:
    """What is drawn: the means, their scale, and which cell is the best."""

    title: str
    rows: Side
    columns: Side
    means: Cells  # [rows, columns]; None: could not be measured
    metric: str
    higher_is_better: bool
    best: tuple[int, int]


def draw_surface(surface: Surface) -> Figure:
    """Return the figure; the better a point, the lighter its cell."""
    rows, columns = surface.rows, surface.columns
    width, height = _span(len(columns.values)), _span(len(rows.values))
    figure, (axes,) = style.new_figure(1, width=width + 3.2, height=height + 1.8)
    colormap = style.SEQUENTIAL if surface.higher_is_better else f"{style.SEQUENTIAL}_r"
    scale = Scale.of(surface.means, colormap, surface.metric)
    scale = replace(scale, decimals=3 if max(abs(scale.low), abs(scale.high)) < 10 else 1)
    matrices.draw_matrix(axes, surface.means, rows.values, scale, columns=columns.values)
    matrices.frame(axes, *surface.best)
    row, column = surface.best
    axes.set(xlabel=style.shorten(columns.path, MAX_PATH), ylabel=style.shorten(rows.path, MAX_PATH))
    axes.set_title(f"{surface.title}\nbest (framed): {rows.values[row]}, {columns.values[column]}")
    return figure


def _span(n: int) -> float:
    return min(max(n * INCHES_PER_CELL, SMALLEST), LARGEST)
