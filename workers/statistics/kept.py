"""Statistics kept for merges of the same models that ask for the same again.

What a request collects depends on the request, on the tensors and weights that it sees, and on the steps before it. A
request that cannot be compared with another (it holds a bound method, say) is collected each time.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from app.domain.recipes import PinnedStep
from workers.contract import MergeContext, PieceSource, RandomStatistic, RecipeCode, StatisticRequest


class Keeper(Protocol):
    """Where a statistic is looked up before it is collected."""

    def collect(self, key: Hashable, collect: Callable[[], Any]) -> Any:
        """Return what is kept under the key, or collect it."""


class Shelf:
    """The statistics of one merge set; those that a merge did not ask for are dropped when the next one begins."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Any] = {}  # Any: each statistic has a type of its own
        self._asked: set[Hashable] = set()

    def begin(self) -> None:
        """Begin a merge, or some at once: drop what the last did not ask for, so that no more than two's are held."""
        self._kept = {key: found for key, found in self._kept.items() if key in self._asked}
        self._asked = set()

    def collect(self, key: Hashable, collect: Callable[[], Any]) -> Any:
        """Return what is kept under the key, or collect and keep it."""
        try:
            self._asked.add(key)
        except TypeError:
            return collect()
        if key not in self._kept:
            self._kept[key] = collect()
        return self._kept[key]


def keep_statistics(code: RecipeCode, keeper: Keeper, transforms: Sequence[PinnedStep]) -> RecipeCode:
    """Return the code with requests that ask the keeper first.

    Post-steps see what was merged, and methods nested with scope "local" other tensors each time: theirs are not kept.
    """
    steps = tuple(step.model_dump_json() for step in transforms)

    def keep(collect: Callable[..., Sequence[StatisticRequest]]) -> Callable[..., Sequence[StatisticRequest]]:
        return lambda *arguments: [_KeptRequest(request, keeper, steps) for request in collect(*arguments)]

    scopes = code.method.card.nested
    return replace(
        code,
        method=replace(code.method, collect=keep(code.method.collect)),
        nested={
            name: replace(method, collect=keep(method.collect)) if scopes[name] == "merge_set" else method
            for name, method in code.nested.items()
        },
        transforms=tuple(replace(step, collect=keep(step.collect)) for step in code.transforms),
    )


@dataclass(frozen=True)
class _KeptRequest:
    """A request that asks the keeper first; satisfies RandomStatistic, too."""

    request: StatisticRequest
    keeper: Keeper
    steps: tuple[str, ...]
    context: MergeContext | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.request.name

    @property
    def n_passes(self) -> int:
        return self.request.n_passes

    def within(self, context: MergeContext) -> "_KeptRequest":
        return replace(self, context=context)

    def collect(self, source: PieceSource) -> Any:
        request = self.request
        drawn: tuple[object, ...] = ()
        if self.context is not None and isinstance(request, RandomStatistic):
            drawn = (self.context.seed, self.context.model_keys, self.context.weights)
            request = request.within(self.context)
        seen = (tuple(name for name, _, _ in source.tensors), tuple(source.weights))
        return self.keeper.collect((self.steps, self.request, drawn, seen), lambda: request.collect(source))
