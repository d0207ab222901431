"""Which merges of a method are tried: its defaults, and a walk over one coefficient."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from app.domain.catalog import MethodCard

COEFFICIENT = "scaling_coefficient"
GRID = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0)
START = 1.0

# What a method takes beside its defaults.
SETTINGS: Mapping[str, Mapping[str, JsonValue]] = {"peru_fft": {"density": 0.1}, "doge_ta": {"steps": 40}}

# Shorter grids, for methods whose merge takes longer than all measurements of a row.
SHORT_GRIDS: Mapping[str, tuple[float, ...]] = {"doge_ta": (START, 2.0, 3.0), "pcb": (0.7, START, 1.6)}

Parameters = dict[str, JsonValue]


@dataclass(frozen=True)
class Best:
    """The parameters that did best on validation, and how many were tried."""

    parameters: Parameters
    score: float
    n_tried: int


def find_best(card: MethodCard, score: Callable[[Parameters], float]) -> Best:
    """Return the best parameters of a method: uphill over the grid of its coefficient, where it has one."""
    grid = SHORT_GRIDS.get(card.name, GRID)
    own = dict(SETTINGS.get(card.name, {}))
    if COEFFICIENT not in card.parameters["properties"]:
        return Best(own, score(own), 1)
    scores: dict[int, float] = {}

    def at(index: int) -> float:
        if index not in scores:
            scores[index] = score({**own, COEFFICIENT: grid[index]})
        return scores[index]

    place = grid.index(START)
    for step in (-1, 1):
        while 0 <= place + step < len(grid) and at(place + step) > at(place):
            place += step
    return Best({**own, COEFFICIENT: grid[place]}, at(place), len(scores))


def why_left_out(card: MethodCard, n_models: int) -> str:
    """Return why a method does not merge the suite's models; empty: it does."""
    if card.data != "none":
        return "looks at data"
    if card.copies:
        return "stacks layers, merges nothing"
    if not card.accepts_dense or card.produces == "adapter":
        return "takes or gives adapters"
    if card.max_models is not None and card.max_models < n_models:
        return f"takes at most {card.max_models} model{'s' if card.max_models > 1 else ''} beside the base"
    return ""
