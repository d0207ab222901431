"""How all figures look, and how they become files: equal data gives equal bytes on any machine.

Colors are told apart with every common color blindness: Okabe and Ito's eight for lines, blue to orange through white
for what has two directions, dark to light for what has one. Text is large enough for a figure at half its size, and
stands in the SVG as outlines, so that no reader needs the font.

Source: Okabe & Ito 2008, "Color Universal Design".
"""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib import style as mpl_style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A7A00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
FAINT = "#999999"
INK = "#1a1a1a"
UNDEFINED = "#d0d0d0"
DIVERGING = "PuOr_r"
SEQUENTIAL = "cividis"
PIXELS_PER_INCH = 150

_SETTINGS: dict[Any, Any] = {  # Any: the stub knows the names as literals, and no type of a value
    "font.family": "DejaVu Sans",  # comes with the library: the same on every machine
    "font.size": 14.0,
    "axes.titlesize": 16.0,
    "axes.labelsize": 14.0,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "legend.fontsize": 12.5,
    "legend.frameon": False,
    "lines.linewidth": 2.2,
    "lines.markersize": 7.0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "image.cmap": SEQUENTIAL,
    "svg.fonttype": "path",
    "svg.hashsalt": "amalgam",  # ids are hashes of content and salt; without one they are drawn at random
    "path.simplify": False,
}


@contextmanager
def applied() -> Iterator[None]:
    """Give every figure that is drawn and saved within this look, whatever the user's own settings are."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    with mpl_style.context("default"), mpl.rc_context(_SETTINGS):
        yield


def new_figure(n_panels: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels side by side. width, height: inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, n_panels, squeeze=False)
    return figure, list(panels[0])


def to_svg(figure: Figure, title: str) -> bytes:
    """Return the figure as an SVG document that holds no date and no version."""
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Title": title, "Date": None, "Creator": None})
    return out.getvalue()


def to_png(figure: Figure, title: str) -> bytes:
    """Return the figure as a PNG image that holds no version."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=PIXELS_PER_INCH, metadata={"Title": title, "Software": None})
    return out.getvalue()


def shorten(label: str, n: int = 22) -> str:
    """Return a label of at most n characters: its begin and its end, which tell names in a row apart."""
    if len(label) <= n:
        return label
    n_last = (n - 1) // 2
    return f"{label[: n - 1 - n_last]}…{label[len(label) - n_last :]}"
