"""Values over a model's depth: the layers in their order along the axis, a line for each tower of blocks."""

from collections.abc import Mapping, Sequence
from itertools import groupby

from matplotlib.axes import Axes

from workers.figures import lines, style
from workers.figures.lines import Series
from workers.statistics.layers import Layer

MAX_TICKS = 14


def draw_by_layer(axes: Axes, layers: Sequence[Layer], series: Series, *, has_legend: bool = True) -> None:
    """Draw a line per series over the layers; lines break between towers. series: name -> a value per layer."""
    x, gapped = _with_gaps(layers, series)
    lines.draw_lines(axes, x, gapped, has_markers=len(layers) <= 2 * MAX_TICKS, has_legend=has_legend)
    stride = -(-len(layers) // MAX_TICKS)
    shown = [place for place, layer in enumerate(layers) if layer.index is None or layer.index % stride == 0]
    axes.set_xticks(shown, [_tick(layers[place]) for place in shown])
    if any(layer.index is None for layer in layers):
        axes.tick_params(axis="x", rotation=40)
    towers = [tower for tower, _ in groupby(layer.tower for layer in layers) if tower is not None]
    axes.set_xlabel(f"block of {towers[0]}" if len(towers) == 1 else " | ".join(towers) or "tensor")


def _with_gaps(layers: Sequence[Layer], series: Series) -> tuple[list[float], Mapping[str, list[float | None]]]:
    """Return places and values with nothing between neighbors that are no blocks of one tower."""
    x: list[float] = []
    gapped: dict[str, list[float | None]] = {name: [] for name in series}
    for place, layer in enumerate(layers):
        if place and (layer.tower is None or layer.tower != layers[place - 1].tower):
            x.append(place - 0.5)
            for values in gapped.values():
                values.append(None)
        x.append(float(place))
        for name, values in gapped.items():
            values.append(series[name][place])
    return x, gapped


def _tick(layer: Layer) -> str:
    return style.shorten(layer.name, 14) if layer.index is None else str(layer.index)
