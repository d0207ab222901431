"""Bars in groups: a group for each label, a bar for each series."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from workers.figures import style

SHARE = 0.8  # of the space that a group fills
HATCHES = ("", "//", "..", "xx")


def draw_bars(axes: Axes, labels: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> None:
    """Draw the bars from zero; a value that is not defined has none."""
    width = SHARE / len(series)
    middles = np.arange(len(labels), dtype=np.float64)
    for index, (name, values) in enumerate(series.items()):
        heights = [np.nan if value is None else value for value in values]
        shift = (index - (len(series) - 1) / 2) * width
        axes.bar(
            middles + shift, heights, width, label=name, color=style.COLORS[index], edgecolor="white",
            hatch=HATCHES[index % len(HATCHES)],
        )  # fmt: skip
    axes.set_xticks(
        middles, [style.shorten(label, 16) for label in labels], rotation=25, ha="right", rotation_mode="anchor"
    )
    axes.grid(visible=False, axis="x")
    if len(series) > 1:
        axes.set_ylim(top=axes.get_ylim()[1] * 1.15)
        axes.legend(ncols=len(series), loc="upper center")
