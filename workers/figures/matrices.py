"""Matrices of numbers as squares of color, with the numbers in them where there is room."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from workers.figures import style

MAX_WRITTEN = 10  # rows; beyond, squares carry no numbers
MAX_LABELED = 30  # rows; beyond, every k-th one is labeled

Cells = Sequence[Sequence[float | None]]


def draw_matrix(
    axes: Axes,
    cells: Cells,
    labels: Sequence[str],
    *,
    limits: tuple[float, float],
    colormap: str,
    label: str,
) -> None:
    """Draw a square matrix, its first row on top. cells: [n, n], None is gray; label: of the color's scale."""
    values = np.array([[np.nan if cell is None else cell for cell in row] for row in cells], dtype=float)
    colors = colormaps[colormap].with_extremes(bad=style.UNDEFINED)
    n = len(values)
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(values), cmap=colors, vmin=limits[0], vmax=limits[1], edgecolors="white",
        linewidth=2.0 if n <= MAX_WRITTEN else 0.0, rasterized=n > MAX_LABELED * 2,
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
        _write_numbers(axes, values, limits, colors)
    scale = axes.figure.colorbar(mesh, ax=axes, label=label, shrink=0.85)
    scale.outline.set_visible(False)  # type: ignore[operator]  # its stub takes it for a tuple of patches


def _write_numbers(axes: Axes, values: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", limits, colors) -> None:
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        if np.isnan(value):
            text, ink = "–", style.INK
        else:
            red, green, blue, _ = colors((value - limits[0]) / (limits[1] - limits[0]))
            text, ink = f"{value:.2f}", "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else style.INK
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, fontsize=13.0)
