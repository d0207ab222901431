"""Which merges of a method are tried: its settings, and a walk over one number, where there is one to choose."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from app.domain.catalog import MethodCard

COEFFICIENT = "scaling_coefficient"
WEIGHT = "weight"  # of every model alike: no parameter of a method, but what there is to choose of one without
GRID = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0, 4.0, 5.0, 6.5, 8.0, 10.0)
START = 1.0

Parameters = dict[str, JsonValue]

# What a method takes beside its defaults.
SETTINGS: Mapping[str, Mapping[str, JsonValue]] = {"peru_fft": {"density": 0.1}, "doge_ta": {"steps": 40}}


@dataclass(frozen=True)
class Sweep:
    """A number that is chosen: where it stands in the parameters, what is tried, and what first."""

    path: tuple[str, ...] = (COEFFICIENT,)
    grid: tuple[float, ...] = GRID
    start: float = START
    inside: str = ""  # the method that path[0] names, if it is one

    def put(self, value: float) -> Parameters:
        """Return the parameters with a value in its place."""
        first, *rest = self.path
        found: JsonValue = value
        for name in reversed(rest):
            found = {name: found}
        if self.inside and isinstance(found, dict):
            found = {"method": self.inside, **found}
        return {first: found}

    def find(self, parameters: Mapping[str, JsonValue]) -> float | None:
        """Return the value that stands in parameters; None: none does."""
        found: JsonValue = dict(parameters)
        for name in self.path:
            if not isinstance(found, dict) or name not in found:
                return None
            found = found[name]
        return float(found) if isinstance(found, int | float) else None


def _of(name: str, inside: str, start: float = START) -> Sweep:
    """Return the sweep of the coefficient of a method inside."""
    return Sweep((name, "parameters", COEFFICIENT), start=start, inside=inside)


# Of methods whose number is not a coefficient of their own, and grids that are shorter, since a merge takes longer than
# all measurements of a row.
SWEEPS: Mapping[str, Sweep | None] = {
    "core_space": _of("merge", "ties"),
    "doge_ta": Sweep(grid=(START, 2.0, 3.0)),
    "expo": Sweep(("extrapolation_factor",)),
    "knots": _of("merge", "ties"),
    "linearized_lora": _of("merge", "task_arithmetic", start=0.5),
    "nearswap": Sweep(("max_change",), (1e-5, 1e-4, 1e-3, 3e-3, 1e-2), start=1e-3),
    "pcb": Sweep(grid=(0.7, START, 1.6)),
    "peft_combination": Sweep((WEIGHT,), start=0.5),
    "peru_lora": None,  # its coefficient is that of another mode
    "peru_fft": _of("shared", "task_arithmetic", start=0.3),
    "slerp": Sweep(("t",), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), start=0.5),
}
SHORT_GRIDS = tuple(name for name, sweep in SWEEPS.items() if sweep is not None and sweep.path == (COEFFICIENT,))


@dataclass(frozen=True)
class Best:
    """The parameters that did best on validation, and how many were tried."""

    parameters: Parameters
    score: float
    n_tried: int


def sweep_of(card: MethodCard) -> Sweep | None:
    """Return what is chosen of a method; None: nothing is."""
    has_coefficient = COEFFICIENT in card.parameters["properties"]
    return SWEEPS.get(card.name, Sweep() if has_coefficient else None)


def find_best(card: MethodCard, score: Callable[[Parameters], float]) -> Best:
    """Return the best parameters of a method: uphill over the grid of its number, where it has one."""
    own, sweep = dict(SETTINGS.get(card.name, {})), sweep_of(card)
    if sweep is None:
        return Best(own, score(own), 1)
    scores: dict[int, float] = {}

    def at(index: int) -> float:
        if index not in scores:
            scores[index] = score({**own, **sweep.put(sweep.grid[index])})
        return scores[index]

    place = sweep.grid.index(sweep.start)
    for step in (-1, 1):
        while 0 <= place + step < len(sweep.grid) and at(place + step) > at(place):
            place += step
    return Best({**own, **sweep.put(sweep.grid[place])}, at(place), len(scores))


def why_left_out(card: MethodCard, groups: Sequence[Sequence[str]]) -> str:
    """Return why a method has no row; empty: it has one. groups: the methods that each table holds."""
    if any(card.name in methods for methods in groups):
        return ""
    if card.data != "none":
        return "looks at data"
    if card.copies:
        return "stacks layers, merges nothing"
    return "makes an adapter dense, merges nothing"


def merges_all(card: MethodCard, n_models: int) -> bool:
    """Return whether a method makes something of so many dense models, and needs no data for it."""
    takes_all = card.max_models is None or card.max_models >= n_models
    return card.data == "none" and not card.copies and card.accepts_dense and card.produces != "adapter" and takes_all
