"""The curve of a sweep as an SVG figure: the mean over the tasks with its standard error, and each task alone.

Colors are those of Okabe and Ito, told apart by every kind of color vision; tasks also differ in their dashes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 440  # pixels, as all lengths here
LEFT, RIGHT, TOP, BOTTOM = 72, 190, 52, 60  # margins; the legend stands on the right
MAX_LISTED = 14  # tasks in the legend
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_MAX_LABEL = 22  # characters


@dataclass(frozen=True)
class Line:
    """One series: a value per point, None where there is none."""

    label: str
    values: Sequence[float | None]
    errors: Sequence[float | None] = ()


@dataclass(frozen=True)
class Figure:
    """What is drawn: positions along x, the mean, the tasks, and which point is the best."""

    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    mean: Line
    tasks: Sequence[Line]
    best: int


def draw_curve(figure: Figure) -> str:
    """Return the SVG document."""
    frame = _Frame(_span(figure.x), _span(_heights(figure)))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f"<title>{escape(figure.title)}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="28" font-size="16">{escape(figure.title)}</text>',
        *_axes(frame, figure),
    ]
    for index, line in enumerate(figure.tasks):
        style = f'stroke="{_COLORS[index % 6]}" stroke-dasharray="{_DASHES[index % 4]}" stroke-width="1.5"'
        parts += _line(frame, figure.x, line, style)
        if index < MAX_LISTED:
            parts += _legend(index + 1, line.label, style)
    style = 'stroke="black" stroke-width="2.5"'
    parts += [*_line(frame, figure.x, figure.mean, style), *_bars(frame, figure), *_legend(0, figure.mean.label, style)]
    return "\n".join([*parts, *_best(frame, figure), "</svg>", ""])


class _Frame:
    """Turns values into pixels."""

    def __init__(self, across: tuple[float, float], up: tuple[float, float]) -> None:
        self.across, self.up = across, up

    def x(self, value: float) -> float:
        low, high = self.across
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.up
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)


def _heights(figure: Figure) -> list[float]:
    bars = zip(figure.mean.values, figure.mean.errors, strict=True)
    ends = [value + side * (error or 0.0) for value, error in bars if value is not None for side in (-1, 1)]
    return ends + [value for line in figure.tasks for value in line.values if value is not None]


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = (high - low) * 0.04 or abs(low) * 0.1 or 0.5
    return low - room, high + room


def _axes(frame: _Frame, figure: Figure) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [f'<path d="M{LEFT},{TOP}V{bottom}H{right}" fill="none" stroke="black"/>']
    for value in _ticks(frame.across):
        x = frame.x(value)
        parts.append(f'<path d="M{x},{bottom}v5" stroke="black"/>')
        parts.append(f'<text x="{x}" y="{bottom + 20}" text-anchor="middle">{value:g}</text>')
    for value in _ticks(frame.up):
        y = frame.y(value)
        parts.append(f'<path d="M{LEFT},{y}H{right}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 14}" text-anchor="middle">{escape(figure.x_label)}</text>'
    )
    parts.append(
        f'<text x="18" y="{middle}" text-anchor="middle" transform="rotate(-90 18 {middle})">{escape(figure.y_label)}'
        "</text>"
    )
    return parts


def _ticks(span: tuple[float, float]) -> list[float]:
    """Return about six round numbers within a span."""
    low, high = span
    rough = (high - low) / 6
    size = 10.0 ** floor(log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    return [round(step * index, 12) for index in range(ceil(low / step), floor(high / step) + 1)]


def _line(frame: _Frame, x: Sequence[float], line: Line, style: str) -> list[str]:
    there = [(at, value) for at, value in zip(x, line.values, strict=True) if value is not None]
    placed = [(frame.x(at), frame.y(value)) for at, value in sorted(there)]
    points = " ".join(f"{at},{up}" for at, up in placed)
    return [f'<polyline points="{points}" fill="none" {style}/>']


def _bars(frame: _Frame, figure: Figure) -> list[str]:
    parts: list[str] = []
    for at, value, error in zip(figure.x, figure.mean.values, figure.mean.errors, strict=True):
        if value is not None:
            x, half = frame.x(at), error or 0.0
            parts.append(f'<path d="M{x},{frame.y(value - half)}V{frame.y(value + half)}" stroke="black"/>')
            parts.append(f'<circle cx="{x}" cy="{frame.y(value)}" r="3" fill="black"/>')
    return parts


def _best(frame: _Frame, figure: Figure) -> list[str]:
    value = figure.mean.values[figure.best]
    x, y = frame.x(figure.x[figure.best]), frame.y(value if value is not None else 0.0)
    return [
        f'<circle cx="{x}" cy="{y}" r="8" fill="none" stroke="#D55E00" stroke-width="2"/>',
        f'<text x="{x}" y="{y - 14}" text-anchor="middle" font-weight="bold">best</text>',
    ]


def _legend(row: int, label: str, style: str) -> list[str]:
    x, y = WIDTH - RIGHT + 14, TOP + 10 + 20 * row
    text = escape(label if len(label) <= _MAX_LABEL else f"{label[: _MAX_LABEL - 1]}…")
    return [f'<path d="M{x},{y}h26" {style}/>', f'<text x="{x + 32}" y="{y + 4}">{text}</text>']
