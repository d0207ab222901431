"""Statistics are collected once for merges that ask for the same, and anew for any that do not."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from app.domain.parameters import Parameters
from app.domain.recipes import PinnedStep
from tests.workers.pipelines.merging import method_of
from workers.contract import MergeContext, PieceSource, RandomStatistic, RecipeCode, StatisticRequest
from workers.statistics.kept import Shelf, keep_statistics
from workers.statistics.views import TensorSource

SOURCE = TensorSource(base=None, models=[{"w": torch.ones(2)}], weights=[1.0])
BLANK = MergeContext(tensor="", shape=(), offset=0, position=0, weights=(1.0,), model_keys=("a",))
calls: list[float] = []


class Threshold(Parameters):
    density: float = 0.5


@dataclass(frozen=True)
class Counted:
    """A request that counts how often it collects."""

    density: float
    beside: object = None
    name: str = "counted"
    n_passes: int = 1

    def collect(self, _source: PieceSource) -> float:
        calls.append(self.density)
        return self.density


@dataclass(frozen=True)
class Drawn:
    """A request that draws."""

    context: MergeContext | None = field(default=None, compare=False)
    name: str = "drawn"
    n_passes: int = 1

    def within(self, context: MergeContext) -> "Drawn":
        return replace(self, context=context)

    def collect(self, _source: PieceSource) -> int:
        assert self.context is not None
        calls.append(self.context.seed)
        return self.context.seed


def keep_all(_base: Tensor, finetuned: Tensor, _parameters: Parameters, _context: MergeContext) -> Tensor:
    return finetuned[0]


def requests(
    shelf: Shelf, density: float, beside: object = None, transforms: tuple[PinnedStep, ...] = ()
) -> list[StatisticRequest]:
    """Return what a method asks for, shelf first."""
    method = method_of(keep_all, parameters=Threshold, collect=lambda asked: [Counted(asked.density, beside)])
    kept = keep_statistics(RecipeCode(method), shelf, transforms)
    return list(kept.method.collect(Threshold(density=density)))


def collect(asked: list[StatisticRequest], source: PieceSource = SOURCE) -> list[object]:
    return [one.collect(source) for one in asked]


def test_what_is_asked_again_is_not_collected_again() -> None:
    calls.clear()
    shelf = Shelf()

    found = [collect(requests(shelf, density)) for density in (0.5, 0.5, 0.7)]

    assert found == [[0.5], [0.5], [0.7]]
    assert calls == [0.5, 0.7]
    assert requests(shelf, 0.5)[0].name == "counted"


def test_other_tensors_weights_or_steps_before_it_are_another_statistic() -> None:
    calls.clear()
    shelf = Shelf()
    collect(requests(shelf, 0.5))

    collect(requests(shelf, 0.5), replace(SOURCE, weights=[2.0]))
    collect(requests(shelf, 0.5), replace(SOURCE, models=[{"v": torch.ones(2)}]))
    collect(requests(shelf, 0.5, transforms=(PinnedStep(name="awd", version=1, parameters={}),)))

    assert len(calls) == 4


def test_a_request_that_cannot_be_compared_is_collected_each_time() -> None:
    calls.clear()
    shelf = Shelf()

    for _ in range(2):
        collect(requests(shelf, 0.5, beside={}))

    assert len(calls) == 2


def test_what_the_last_merge_did_not_ask_for_is_dropped() -> None:
    calls.clear()
    shelf = Shelf()
    for density in (0.5, 0.7, 0.5):
        shelf.begin()
        collect(requests(shelf, density))
    shelf.begin()

    collect(requests(shelf, 0.5))

    assert calls == [0.5, 0.7, 0.5]  # the second merge did not ask for 0.5, the last one found it


def test_what_is_drawn_is_kept_by_its_seed() -> None:
    calls.clear()
    method = method_of(keep_all, parameters=Threshold, collect=lambda _: [Drawn()])
    (asked,) = keep_statistics(RecipeCode(method), Shelf(), ()).method.collect(Threshold())

    assert isinstance(asked, RandomStatistic)
    found = [asked.within(replace(BLANK, seed=seed)).collect(SOURCE) for seed in (1, 2, 1)]

    assert found == [1, 2, 1]
    assert calls == [1, 2]
