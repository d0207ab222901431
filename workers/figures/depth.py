"""Values over a model's depth: the layers in their order along the axis, a line for each tower of blocks."""

from collections.abc import Mapping, Sequence
from itertools import groupby

from matplotlib.axes import Axes

from workers.figures import lines, style
from workers.figures.lines import Series
from workers.statistics.layers import Layer

MAX_TICKS = 11
MAX_TOWER = 24  # characters of a tower's name


def draw_by_layer(axes: Axes, layers: Sequence[Layer], series: Series, *, has_legend: bool = True) -> None:
    """Draw a line per series over the layers; lines break between towers. series: name -> a value per layer."""
    places = _place(layers)
    x, gapped = _with_gaps(layers, places, series)
    lines.draw_lines(axes, x, gapped, has_markers=len(layers) <= 2 * MAX_TICKS, has_legend=has_legend)
    stride = -(-len(layers) // MAX_TICKS)
    shown = [at for at, layer in enumerate(layers) if layer.index is None or layer.index % stride == 0]
    axes.set_xticks([places[at] for at in shown], [_tick(layers[at]) for at in shown])
    if any(layer.index is None for layer in layers):
        axes.tick_params(axis="x", rotation=40)
    axes.set_xlabel(_name_towers(layers))


def _place(layers: Sequence[Layer]) -> list[float]:
    """Return where each layer stands: one step from its neighbor in a tower, further where a tower begins or ends."""
    gap = max(1.0, len(layers) / 16)
    places: list[float] = []
    for at in range(len(layers)):
        step = gap if _is_break(layers, at) else 1.0
        places.append(places[-1] + step if places else 0.0)
    return places


def _is_break(layers: Sequence[Layer], at: int) -> bool:
    """Tell whether no line leads to a layer from the one before it."""
    return at > 0 and (layers[at].tower is None or layers[at].tower != layers[at - 1].tower)


def _with_gaps(
    layers: Sequence[Layer], places: Sequence[float], series: Series
) -> tuple[list[float], Mapping[str, list[float | None]]]:
    """Return places and values with nothing between neighbors that are no blocks of one tower."""
    x: list[float] = []
    gapped: dict[str, list[float | None]] = {name: [] for name in series}
    for at, place in enumerate(places):
        if _is_break(layers, at):
            x.append(place - 0.5)
            for values in gapped.values():
                values.append(None)
        x.append(place)
        for name, values in gapped.items():
            values.append(series[name][at])
    return x, gapped


def _name_towers(layers: Sequence[Layer]) -> str:
    towers = [tower for tower, _ in groupby(layer.tower for layer in layers) if tower is not None]
    if not towers:
        return "tensor"
    if len(towers) == 1:
        return f"block of {style.shorten(towers[0], MAX_TOWER)}"
    return " | ".join(style.shorten(tower, MAX_TOWER // len(towers)) for tower in towers)


def _tick(layer: Layer) -> str:
    return style.shorten(layer.name, 14) if layer.index is None else str(layer.index)
