"""A matrix of numbers in [-1, 1] as an SVG heat map: -1 blue, 0 white, 1 red, undefined gray."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

CELL = 56  # pixels, as all lengths here
LABEL_WIDTH = 180  # of the rows' labels, on the left
TOP = 172  # the title, and the columns' labels, which lean to the right by half a right angle
SLANT_WIDTH = 120  # that the last of them need beyond the last column
MAX_WRITTEN = 32  # beyond this many rows, cells carry no numbers
_MAX_LABEL = 24  # characters

_NEGATIVE = (33, 102, 172)
_POSITIVE = (178, 24, 43)
_UNDEFINED = "#cccccc"


def draw_heatmap(title: str, labels: Sequence[str], values: Sequence[Sequence[float | None]]) -> str:
    """Return the SVG document. values: one row per label, as many columns; None is undefined."""
    width = LABEL_WIDTH + CELL * len(labels) + SLANT_WIDTH
    height = TOP + CELL * len(labels) + CELL // 4
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="28" font-size="16">{escape(title)}</text>',
    ]
    for index, label in enumerate(labels):
        middle = CELL * index + CELL // 2
        text = escape(label if len(label) <= _MAX_LABEL else f"{label[: _MAX_LABEL - 1]}…")
        x, y = LABEL_WIDTH + middle, TOP - 8
        parts.append(f'<text x="{LABEL_WIDTH - 8}" y="{TOP + middle + 4}" text-anchor="end">{text}</text>')
        parts.append(f'<text x="{x}" y="{y}" transform="rotate(-45 {x} {y})">{text}</text>')
    for row, cells in enumerate(values):
        for column, cell in enumerate(cells):
            parts.append(_cell(LABEL_WIDTH + CELL * column, TOP + CELL * row, cell, len(labels)))
    return "\n".join([*parts, "</svg>", ""])


def _cell(x: int, y: int, value: float | None, n_rows: int) -> str:
    square = f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="{_color(value)}" stroke="white"/>'
    if n_rows > MAX_WRITTEN:
        return square
    text = "–" if value is None else f"{value:.2f}"
    ink = "white" if value is not None and abs(value) > 0.6 else "black"
    middle = f'x="{x + CELL // 2}" y="{y + CELL // 2 + 4}"'
    return f'{square}\n<text {middle} text-anchor="middle" fill="{ink}">{text}</text>'


def _color(value: float | None) -> str:
    if value is None:
        return _UNDEFINED
    end = _POSITIVE if value > 0 else _NEGATIVE
    red, green, blue = (round(255 + (channel - 255) * min(1.0, abs(value))) for channel in end)
    return f"#{red:02x}{green:02x}{blue:02x}"
