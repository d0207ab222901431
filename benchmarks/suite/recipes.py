"""Which merges of a method are tried: its defaults, and a walk over one coefficient."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from app.domain.catalog import MethodCard

COEFFICIENT = "scaling_coefficient"
GRID = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0)
START = 1.0

# What a method takes beside its defaults; one that has no fair setting on this suite says why it is left out.
SETTINGS: Mapping[str, Mapping[str, JsonValue]] = {}
LEFT_OUT: Mapping[str, str] = {
    "passthrough": "stacks layers; merges nothing",
    "slerp": "takes exactly two models",
    "nuslerp": "takes exactly two models",
    "arcee_fusion": "takes one model beside the base",
    "nearswap": "takes one model beside the base",
    "expo": "extrapolates one model",
    "lora_fuse": "takes an adapter",
    "lora_extract": "gives an adapter of one model",
    "knots": "takes adapters",
    "core_space": "takes adapters",
    "linearized_lora": "takes adapters",
}

Parameters = dict[str, JsonValue]


@dataclass(frozen=True)
class Best:
    """The parameters that did best on validation, and how many were tried."""

    parameters: Parameters
    score: float
    n_tried: int


def find_best(card: MethodCard, score: Callable[[Parameters], float]) -> Best:
    """Return the best parameters of a method: uphill over the grid of its coefficient, where it has one."""
    own = dict(SETTINGS.get(card.name, {}))
    if COEFFICIENT not in card.parameters["properties"]:
        return Best(own, score(own), 1)
    scores: dict[int, float] = {}

    def at(index: int) -> float:
        if index not in scores:
            scores[index] = score({**own, COEFFICIENT: GRID[index]})
        return scores[index]

    place = GRID.index(START)
    for step in (-1, 1):
        while 0 <= place + step < len(GRID) and at(place + step) > at(place):
            place += step
    return Best({**own, COEFFICIENT: GRID[place]}, at(place), len(scores))
