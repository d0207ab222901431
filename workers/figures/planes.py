"""Numbers over the plane of two task vectors: colors, contours, and where known models lie."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from workers.figures import style
from workers.figures.matrices import Cells, Scale, draw_scale, to_numbers

N_CONTOURS = 8
_OUTLINE = [patheffects.withStroke(linewidth=3.0, foreground="white")]


def draw_plane(
    axes: Axes, coefficients: Sequence[float], cells: Cells, scale: Scale, *, has_contours: bool = True
) -> None:
    """Draw a grid of numbers; rows go up. cells: [n, n], None is gray."""
    values = to_numbers(cells)
    mesh = axes.pcolormesh(
        coefficients, coefficients, values, shading="nearest", cmap=scale.colors, vmin=scale.low, vmax=scale.high,
        rasterized=len(values) > 40,
    )  # fmt: skip
    if has_contours and len(values) >= 5 and scale.high > scale.low and values.max() > values.min():
        levels = np.linspace(values.min(), values.max(), N_CONTOURS + 2)[1:-1]
        axes.contour(coefficients, coefficients, values, levels=levels, colors="white", linewidths=0.9, alpha=0.8)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    draw_scale(axes, mesh, scale)


def label(axes: Axes, models: Sequence[str]) -> None:
    """Name the axes after the models whose task vectors they are."""
    axes.set_xlabel(f"coefficient of {style.shorten(models[0])}")
    axes.set_ylabel(f"coefficient of {style.shorten(models[1])}")


def mark(axes: Axes, points: Mapping[str, tuple[float, float]], best: tuple[float, float]) -> None:
    """Mark known points that lie within the panel by name, and the best one by a star."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for name, (x, y) in points.items():
        if left <= x <= right and bottom <= y <= top:
            axes.plot(x, y, marker="o", color=style.INK, markeredgecolor="white", markersize=9.0)
            axes.annotate(
                name, (x, y), xytext=(7, 6), textcoords="offset points", fontweight="bold", path_effects=_OUTLINE
            )
    axes.plot(*best, marker="*", color=style.COLORS[1], markeredgecolor="white", markersize=19.0)


def frame_merges(axes: Axes) -> None:
    """Frame the coefficients in [0, 1], where merges are looked for."""
    axes.add_patch(Rectangle((0.0, 0.0), 1.0, 1.0, fill=False, edgecolor="white", linewidth=4.0))
    axes.add_patch(
        Rectangle((0.0, 0.0), 1.0, 1.0, fill=False, edgecolor=style.COLORS[1], linewidth=2.2, linestyle="--")
    )
