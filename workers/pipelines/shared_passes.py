"""Passes that several merges of one merge set make together: a run is read once, and all that wait for a pass see it.

Each merge collects its statistics on a thread of its own. It stops where a pass begins, or where another one is
collecting what it asks for. When all have stopped, one pass is made for those that wait for one of its kind, and its
results go to each as they come. What a merge finds is what it would have found alone.
"""

import threading
from collections.abc import Callable, Container, Hashable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Queue
from typing import Any, TypeVar

from app.domain.catalog import Granularity
from app.domain.recipes import Recipe
from workers.contract import Piece, PieceSource
from workers.fusion import NotClean, Rows
from workers.statistics.kept import Shelf
from workers.statistics.views import SourceView

Result = TypeVar("Result")

RESULTS_AHEAD = 64  # of a pass, that a merge may be behind


@dataclass(frozen=True)
class _End:
    """Stands behind the last result of a pass; with an error, in place of the first one that there is not."""

    error: BaseException | None = None


@dataclass(frozen=True, eq=False)
class _Pass:
    """A pass that a merge waits for, and its results."""

    function: Callable[[Any], Any]  # of a Piece, or of Rows
    tensors: Container[str] | None
    kind: tuple[type[Piece] | type[Rows], Granularity]
    results: "Queue[Any]" = field(default_factory=lambda: Queue(RESULTS_AHEAD))
    is_left: threading.Event = field(default_factory=threading.Event)

    def wants(self, tensor: str) -> bool:
        """Tell whether it looks at a tensor."""
        return self.tensors is None or tensor in self.tensors

    def apply(self, seen: Piece | Rows) -> Any:
        """Return what the function makes of what is seen, or why it makes nothing."""
        try:
            return self.function(seen)
        except NotClean:
            raise  # the source knows what to do
        except Exception as error:  # noqa: BLE001 (it is raised where results are asked for)
            return _End(error)

    def put(self, result: object) -> None:
        """Hand over a result, if anybody still takes any."""
        if not self.is_left.is_set():
            self.results.put(result)

    def take(self) -> Iterator[Any]:
        """Yield the results as they come."""
        try:
            while not isinstance(result := self.results.get(), _End):
                yield result
            if result.error is not None:
                raise result.error
        finally:
            self.is_left.set()
            while not self.results.empty():  # whoever waits to hand one over goes on
                self.results.get_nowait()


@dataclass
class _Finding:
    """What one merge collects, and others may wait for."""

    outcome: "Future[Any]" = field(default_factory=Future)
    n_waiting: int = 0


class SharedPasses:
    """Where merges meet that read one source; satisfies kept.Keeper."""

    def __init__(self, source: PieceSource, shelf: Shelf) -> None:
        self._source = source
        self._shelf = shelf
        self._changed = threading.Condition()
        self._n_running = 0
        self._begun: list[_Pass] = []
        self._findings: dict[Hashable, _Finding] = {}

    def run(self, merges: Sequence[Callable[[], Result]]) -> list[Result | Exception]:
        """Run each function on a thread of its own, make the passes, and return what each has returned or raised."""
        outcomes: list[Any] = [None] * len(merges)

        def run_one(index: int) -> None:
            try:
                outcomes[index] = merges[index]()
            except Exception as error:  # noqa: BLE001 (it is the outcome)
                outcomes[index] = error
            finally:
                self._stop()

        self._n_running = len(merges)
        for index in range(len(merges)):
            threading.Thread(target=run_one, args=(index,), daemon=True).start()
        while passes := self._wait():
            self._read(passes)
        return outcomes

    def source_of(self, recipe: Recipe) -> "SharedSource":
        """Return the source as the merge of a recipe sees it."""
        return SharedSource(self._source, self, [model.weight for model in recipe.models])

    def begin(self, one: _Pass) -> Iterator[Any]:
        """Wait for a pass, and yield its results."""
        with self._changed:
            self._begun.append(one)
            self._stop()
        yield from one.take()

    def collect(self, key: Hashable, collect: Callable[[], Any]) -> Any:
        """Return what is kept under the key, or collect and keep it, or wait until another merge has."""
        try:
            hash(key)
        except TypeError:
            return collect()
        with self._changed:
            is_first = key not in self._findings
            finding = self._findings.setdefault(key, _Finding())
            if not is_first and not finding.outcome.done():
                finding.n_waiting += 1
                self._stop()
                self._changed.wait_for(finding.outcome.done)
        if is_first:
            self._settle(finding, lambda: self._shelf.collect(key, collect))
        return finding.outcome.result()

    def _settle(self, finding: _Finding, collect: Callable[[], Any]) -> None:
        value, error = None, None
        try:
            value = collect()
        except Exception as raised:  # noqa: BLE001 (raised for all who ask)
            error = raised
        with self._changed:
            if error is None:
                finding.outcome.set_result(value)
            else:
                finding.outcome.set_exception(error)
            self._n_running += finding.n_waiting
            self._changed.notify_all()

    def _stop(self) -> None:
        with self._changed:
            self._n_running -= 1
            self._changed.notify_all()

    def _wait(self) -> list[_Pass]:
        """Return passes of one kind that are waited for, when no merge runs; none: all have ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._n_running == 0)
            chosen = [one for one in self._begun if one.kind == self._begun[0].kind]
            self._begun = [one for one in self._begun if one not in chosen]
            self._n_running = len(chosen)
        return chosen

    def _read(self, passes: Sequence[_Pass]) -> None:
        """Make passes of one kind at once."""
        kind, granularity = passes[0].kind
        names = {name for name, _, _ in self._source.tensors if any(one.wants(name) for one in passes)}

        def apply(seen: Any) -> list[tuple[_Pass, Any]]:  # a piece, or rows
            return [(one, one.apply(seen)) for one in passes if one.wants(seen.tensor)]

        read = self._source.map if kind is Piece else self._source.map_rows
        end = _End()
        try:
            for found in read(apply, names, granularity=granularity):
                for one, result in found:
                    one.put(result)
        except Exception as error:  # noqa: BLE001 (raised by every pass)
            end = _End(error)
        for one in passes:
            one.put(end)


@dataclass(frozen=True)
class SharedSource(SourceView):
    """A source as one of several merges sees it; satisfies workers.contract.PieceSource."""

    passes: SharedPasses
    weights: Sequence[float]  # one per model

    def map(
        self,
        function: Callable[[Piece], Result],
        tensors: Container[str] | None = None,
        *,
        granularity: Granularity = "element",
    ) -> Iterator[Result]:
        """Apply a function to every piece, in a pass with others."""
        yield from self.passes.begin(_Pass(function, tensors, (Piece, granularity)))

    def map_rows(
        self,
        function: Callable[[Rows], Result],
        tensors: Container[str] | None = None,
        *,
        granularity: Granularity = "element",
    ) -> Iterator[Result]:
        """Apply a function to the rows of every run, in a pass with others."""
        yield from self.passes.begin(_Pass(function, tensors, (Rows, granularity)))
