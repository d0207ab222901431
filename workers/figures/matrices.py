"""Matrices of numbers as squares of color, with the numbers in them where there is room."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap

from workers.figures import style

MAX_WRITTEN = 10  # rows; beyond, squares carry no numbers
MAX_LABELED = 16  # rows; beyond, every k-th one is labeled
MAX_PATHS = 60  # rows; beyond, the SVG holds a picture of the squares

Cells = Sequence[Sequence[float | None]]
Numbers = np.ma.MaskedArray[tuple[int, int], np.dtype[np.float64]]


@dataclass(frozen=True)
class Scale:
    """What colors mean: the numbers at their ends, and what is measured."""

    low: float
    high: float
    colormap: str
    label: str

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
        red, green, blue, _ = self.colors((value - self.low) / (self.high - self.low))
        return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else style.INK


def draw_matrix(axes: Axes, cells: Cells, labels: Sequence[str], scale: Scale) -> None:
    """Draw a square matrix, its first row on top. cells: [n, n], None is gray."""
    values = to_numbers(cells)
    n = len(values)
    mesh = axes.pcolormesh(
        values, cmap=scale.colors, vmin=scale.low, vmax=scale.high, edgecolors="white",
        linewidth=2.0 if n <= MAX_WRITTEN else 0.0, rasterized=n > MAX_PATHS,
    )  # fmt: skip
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    places = range(0, n, -(-n // MAX_LABELED))
    shown = [style.shorten(labels[place], 18) for place in places]
    axes.set_xticks([place + 0.5 for place in places], shown, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks([place + 0.5 for place in places], shown)
    if n <= MAX_WRITTEN:
        for row, column in np.ndindex(*values.shape):
            _write_number(
                axes,
                (row, column),
                None if np.ma.getmaskarray(values)[row, column] else float(values[row, column]),
                scale,
            )
    draw_scale(axes, mesh, scale)


def to_numbers(cells: Cells) -> Numbers:
    """Return the numbers, those that are None masked."""
    return np.ma.masked_invalid([[np.nan if cell is None else cell for cell in row] for row in cells])


def draw_scale(axes: Axes, mesh: QuadMesh, scale: Scale) -> None:
    """Draw what colors mean beside a panel."""
    bar = axes.figure.colorbar(mesh, ax=axes, label=scale.label, shrink=0.85)
    bar.outline.set_visible(False)


def _write_number(axes: Axes, cell: tuple[int, int], value: float | None, scale: Scale) -> None:
    text, ink = ("–", style.INK) if value is None else (f"{value:z.2f}", scale.ink(value))
    row, column = cell
    axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, fontsize=13.0)
