"""Statistics of a whole merge set, collected by many processes in rounds: each tallies its tensors, all replay.

A statistic reads its source in passes: it maps a pure function over all pieces and folds the results in the order of
position. A part of a merge replays the results of every pass that all parts have tallied, maps the first pass that
they have not over its own tensors alone, and ends there: `PassTallied`. In the next round that pass is replayed as
well; when no pass is left, the part merges. Every part makes the folds, so each has every statistic, bit for bit.
What a statistic marks as worth keeping (`once`) travels with the tallies, and is not made again in later rounds.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from app.domain.catalog import Granularity
from workers.checkpoints.source import CheckpointSource
from workers.checkpoints.tallies_file import Tallies
from workers.contract import Piece, Place, visit_in_turn
from workers.fusion import Rows
from workers.statistics.views import SourceView

Result = TypeVar("Result")
JOINED_AT_ONCE = 16


@runtime_checkable
class Joined(Protocol):
    """A result that can stand for several pieces: so that what is tallied does not grow with the tensors."""

    def join(self, following: Sequence[Any]) -> Any:
        """Return this and what follows as one result of the same kind."""


class PassTallied(Exception):
    """A pass was tallied whose results are not known yet: this round is over."""

    def __init__(self, index: int, tallies: Tallies, folded: Sequence["Folded"]) -> None:
        super().__init__("a pass over the tensors of this part")
        self.index = index
        self.tallies = tallies
        self.folded = folded


@dataclass(frozen=True)
class Folded:
    """What was found once, between the passes that had begun before and those that had after it."""

    number: int  # of this finding
    value: object
    n_passes: int  # that had begun when it was found
    n_found: int


@dataclass
class _Progress:
    """How many passes have begun, and findings; and the findings that are complete, by number."""

    n_passes: int = 0
    n_found: int = 0
    folded: dict[int, Folded] = field(default_factory=dict)


@dataclass(frozen=True)
class ReplayedSource(SourceView):
    """A source of which one process reads some tensors only; satisfies workers.contract.PieceSource."""

    source: CheckpointSource
    own: frozenset[str]  # tensors that this process tallies
    known: Sequence[Tallies]  # of each pass, by all processes
    is_whole: bool = True  # all tensors are at hand: visits are no passes, every process reads the little they need
    folded: Sequence[Folded] = ()  # found in earlier rounds
    _progress: _Progress = field(default_factory=_Progress, init=False, repr=False)

    @property
    def weights(self) -> Sequence[float]:
        """One weight per model."""
        return self.source.weights

    def map(
        self,
        function: Callable[[Piece], Result],
        tensors: Container[str] | None = None,
        *,
        granularity: Granularity = "element",
    ) -> Iterator[Result]:
        """Yield what the function made of every piece, if it is known. Raises: PassTallied."""
        yield from self._replay(
            lambda: self.source.map(
                lambda piece: (piece.tensor, function(piece)), self._wanted(tensors), granularity=granularity
            ),
            tensors,
        )

    def map_rows(
        self,
        function: Callable[[Rows], Result],
        tensors: Container[str] | None = None,
        *,
        granularity: Granularity = "element",
    ) -> Iterator[Result]:
        """Yield what the function made of the rows of every run, if it is known. Raises: PassTallied."""
        yield from self._replay(
            lambda: self.source.map_rows(
                lambda rows: (rows.tensor, function(rows)), self._wanted(tensors), granularity=granularity
            ),
            tensors,
        )

    def visit(
        self, function: Callable[[Place], Result], groups: Sequence[Sequence[tuple[str, Place]]]
    ) -> Sequence[Iterator[Result]]:
        """Apply a function to places within tensors: of all, or of its own, as one more pass. Raises: PassTallied."""
        if self.is_whole:
            return visit_in_turn(function, groups)
        index = self._begin()
        if index == len(self.known):
            found = {
                _of_group(number, tensor): [function(place) for name, place in group if name == tensor]
                for number, group in enumerate(groups)
                for tensor in sorted({name for name, _ in group} & self.own)
            }
            raise self._end(index, found)
        known = self.known[index]
        return [_in_order(known, number, group) for number, group in enumerate(groups)]

    def once(self, function: Callable[[], Result]) -> Result:
        """Return what the function finds, or what it found in an earlier round. Raises: PassTallied."""
        progress, number = self._progress, self._progress.n_found
        known = next((one for one in self.folded if one.number == number), None)
        if known is None:
            progress.n_found += 1
            value = function()
            known = Folded(number, value, progress.n_passes, progress.n_found)
        progress.n_passes, progress.n_found = known.n_passes, known.n_found
        progress.folded[number] = known
        return cast(Result, known.value)

    def _wanted(self, tensors: Container[str] | None) -> frozenset[str]:
        return self.own if tensors is None else frozenset(name for name in self.own if name in tensors)

    def _begin(self) -> int:
        self._progress.n_passes += 1
        return self._progress.n_passes - 1

    def _end(self, index: int, tallies: Tallies) -> PassTallied:
        return PassTallied(index, tallies, list(self._progress.folded.values()))

    def _replay(
        self, tally: Callable[[], Iterator[tuple[str, Result]]], tensors: Container[str] | None
    ) -> Iterator[Result]:
        index = self._begin()
        if index == len(self.known):
            found: dict[str, list[object]] = {}
            for tensor, result in tally():
                of_tensor = found.setdefault(tensor, [])
                of_tensor.append(result)
                if isinstance(result, Joined) and len(of_tensor) == JOINED_AT_ONCE:
                    found[tensor] = [_join(of_tensor)]
            raise self._end(index, {tensor: _shorten(results) for tensor, results in found.items()})
        known = self.known[index]
        self.source.spare_judging(name for name, _, _ in self.tensors if tensors is None or name in tensors)
        for name, _, _ in self.tensors:
            yield from known.get(name, ())  # type: ignore[misc]  # as the same function made them


def _shorten(results: list[object]) -> list[object]:
    return [_join(results)] if isinstance(results[0], Joined) else results


def _join(results: Sequence[Any]) -> object:  # of one kind
    joined: object = results[0].join(results[1:])
    return joined


def _of_group(number: int, tensor: str) -> str:
    return f"{number}/{tensor}"


def _in_order(known: Tallies, number: int, group: Sequence[tuple[str, Place]]) -> Iterator[Any]:  # as visits gave them
    results = {tensor: iter(known[_of_group(number, tensor)]) for tensor, _ in group}
    return (next(results[tensor]) for tensor, _ in group)


def join_tallies(parts: Sequence[Mapping[str, Sequence[object]]]) -> Tallies:
    """Return the tallies of all parts of one pass as one."""
    return {name: list(results) for part in parts for name, results in part.items()}
