"""Matrices of numbers as cells of color, with the numbers in them where there is room."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap
from matplotlib.patches import Rectangle

from workers.figures import style

MAX_WRITTEN = 10  # rows or columns; beyond, cells carry no numbers
MAX_LABELED = 16  # rows or columns; beyond, every k-th one is labeled
MAX_PATHS = 60  # rows or columns; beyond, the SVG holds a picture of the cells

Cells = Sequence[Sequence[float | None]]
Numbers = np.ma.MaskedArray[tuple[int, int], np.dtype[np.float64]]


@dataclass(frozen=True)
class Scale:
    """What colors mean: the numbers at their ends, and what is measured."""

    low: float
    high: float
    colormap: str
    label: str
    decimals: int = 2  # of the numbers in the cells

    @staticmethod
    def of(cells: Cells, colormap: str, label: str) -> "Scale":
        """Return the scale from the least to the most of some numbers."""
        known = [cell for row in cells for cell in row if cell is not None]
        return Scale(min(known, default=0.0), max(known, default=1.0), colormap, label)

    @property
    def colors(self) -> Colormap:
        """The colors, gray for what is not defined."""
        return colormaps[self.colormap].with_extremes(bad=style.UNDEFINED)

    def ink(self, value: float) -> str:
        """Return the color of a text on the color of a value."""
        red, green, blue, _ = self.colors((value - self.low) / (self.high - self.low or 1.0))
        return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else style.INK


def draw_matrix(
    axes: Axes, cells: Cells, rows: Sequence[str], scale: Scale, *, columns: Sequence[str] | None = None
) -> None:
    """Draw a matrix, its first row on top. cells: [n, m], None is gray; columns: m names; None: square, named as rows.

    A square matrix has square cells; those of another fill the panel.
    """
    values = to_numbers(cells)
    n_most = max(values.shape)
    mesh = axes.pcolormesh(
        values, cmap=scale.colors, vmin=scale.low, vmax=scale.high, edgecolors="white",
        linewidth=2.0 if n_most <= MAX_WRITTEN else 0.0, rasterized=n_most > MAX_PATHS,
    )  # fmt: skip
    axes.set_aspect("equal" if columns is None else "auto")
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(*_ticks(rows if columns is None else columns), rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(*_ticks(rows))
    if n_most <= MAX_WRITTEN:
        for row, column in np.ndindex(*values.shape):
            value = None if np.ma.getmaskarray(values)[row, column] else float(values[row, column])
            _write_number(axes, (row, column), value, scale)
    draw_scale(axes, mesh, scale)


def frame(axes: Axes, row: int, column: int) -> None:
    """Frame one cell of a matrix."""
    axes.add_patch(
        Rectangle((column + 0.04, row + 0.04), 0.92, 0.92, fill=False, edgecolor=style.INK, linewidth=3.0, zorder=3)
    )


def to_numbers(cells: Cells) -> Numbers:
    """Return the numbers, those that are None masked."""
    return np.ma.masked_invalid([[np.nan if cell is None else cell for cell in row] for row in cells])


def draw_scale(axes: Axes, mesh: QuadMesh, scale: Scale) -> None:
    """Draw what colors mean beside a panel."""
    bar = axes.figure.colorbar(mesh, ax=axes, label=scale.label, shrink=0.85)
    bar.outline.set_visible(False)


def _ticks(labels: Sequence[str]) -> tuple[list[float], list[str]]:
    """Return where labels stand, and as much of them as there is room for."""
    places = range(0, len(labels), -(-len(labels) // MAX_LABELED))
    return [place + 0.5 for place in places], [style.shorten(labels[place], 18) for place in places]


def _write_number(axes: Axes, cell: tuple[int, int], value: float | None, scale: Scale) -> None:
    text, ink = ("–", style.INK) if value is None else (f"{value:z.{scale.decimals}f}", scale.ink(value))
    row, column = cell
    axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, fontsize=13.0)
