"""Merges that meet for their passes: one pass for all that wait, results in order, failures for whom they are."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch

from app.domain.recipes import Recipe, RecipeModel
from workers.contract import Piece, PieceSource
from workers.pipelines.shared_passes import RESULTS_AHEAD, SharedPasses, SharedSource
from workers.statistics.kept import Shelf
from workers.statistics.views import TensorSource

NUMBERS = torch.arange(300.0)
MODELS = [{"a": NUMBERS[:200], "b": NUMBERS[200:]}]


@dataclass(frozen=True)
class Counted(TensorSource):
    """Counts its passes."""

    passes: list[str] = field(default_factory=list)

    def map(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        """Read it once more."""
        self.passes.append(options["granularity"])
        return super().map(*arguments, **options)


class Meeting:
    """A meeting of merges over some numbers."""

    def __init__(self) -> None:
        self.counted = Counted(base=None, models=MODELS, weights=[1.0], piece_elements=1)
        self.passes = SharedPasses(self.counted, Shelf())
        recipe = Recipe(
            method="average",
            method_version=1,
            models=(RecipeModel(content_digest="c", weights_digest="w", weight=0.5),),
            parameters={},
            shard_bytes=1,
        )
        self.source: SharedSource = self.passes.source_of(recipe)

    def run(self, *merges: Callable[[PieceSource], object]) -> Sequence[object]:
        return self.passes.run([partial(merge, self.source) for merge in merges])


def total(source: PieceSource, *tensors: str) -> float:
    return sum(source.map(lambda piece: float(piece.finetuned.sum()), set(tensors) or None))


def test_a_pass_serves_all_that_wait_each_with_its_own_tensors() -> None:
    meeting = Meeting()

    found = meeting.run(
        total, lambda source: total(source, "b"), lambda source: total(source, "a") + total(source, "b")
    )

    assert found == [44850.0, 24950.0, 44850.0]
    assert meeting.counted.passes == ["element"] * 2
    assert (meeting.source.weights, meeting.source.n_models, meeting.source.threads) == ([0.5], 1, 1)


def test_results_come_in_order_however_many_there_are() -> None:
    assert RESULTS_AHEAD < 300

    def read(source: PieceSource) -> list[float]:
        return list(source.map_rows(lambda rows: float(rows.position)))

    assert Meeting().run(read, read) == [list(map(float, range(300)))] * 2


def test_passes_of_another_granularity_wait_for_their_own() -> None:
    meeting = Meeting()

    found = meeting.run(total, lambda source: len(list(source.map(lambda piece: piece.tensor, granularity="tensor"))))

    assert found == [44850.0, 2]
    assert sorted(meeting.counted.passes) == ["element", "tensor"]


def fail(piece: Piece) -> float:
    if piece.position == 250:
        raise ValueError("250")
    return 1.0


def test_who_fails_within_a_pass_fails_alone() -> None:
    failed, found = Meeting().run(lambda source: sum(source.map(fail)), total)

    assert (repr(failed), found) == ("ValueError('250')", 44850.0)


def test_who_leaves_a_pass_keeps_nobody_waiting() -> None:
    def leave(source: PieceSource) -> float:
        return next(source.map(lambda piece: float(piece.position)))

    assert Meeting().run(leave, total) == [0.0, 44850.0]


def test_what_cannot_be_read_fails_for_all() -> None:
    meeting = Meeting()

    def unreadable(*_: object, **__: object) -> Iterator[object]:
        raise OSError("gone")

    object.__setattr__(meeting.counted, "map", unreadable)
    assert [repr(one) for one in meeting.run(total, total)] == ["OSError('gone')"] * 2


def collect(key: Any, function: Callable[[PieceSource], object], meeting: Meeting, source: PieceSource) -> object:
    return meeting.passes.collect(key, lambda: function(source))


def test_what_several_ask_for_is_collected_once() -> None:
    meeting, calls = Meeting(), list[float]()

    def once(source: PieceSource) -> float:
        calls.append(total(source))
        return calls[-1]

    found = meeting.run(*[partial(collect, "sum", once, meeting)] * 3, total)

    assert (found, calls, meeting.counted.passes) == ([44850.0] * 4, [44850.0], ["element"])


def test_what_cannot_be_collected_fails_for_all_that_ask() -> None:
    meeting = Meeting()

    found = meeting.run(*[partial(collect, "sum", lambda source: sum(source.map(fail)), meeting)] * 2, total)

    assert [repr(one) for one in found] == ["ValueError('250')"] * 2 + ["44850.0"]


def test_what_cannot_be_compared_is_collected_by_each() -> None:
    meeting = Meeting()

    assert meeting.run(*[partial(collect, ["no", "key"], total, meeting)] * 2) == [44850.0] * 2


@pytest.mark.parametrize("n", [1, 16])
def test_what_is_read_beside_the_passes_is_read_at_once(n: int) -> None:
    def visit(source: PieceSource) -> list[float]:
        (found,) = source.visit(lambda at: float(source.read("a", at, 1).finetuned), [[("a", 3), ("a", 7)]])
        return source.once(lambda: [*found, float(source.rows("b", 0, 1) is not None)])

    assert Meeting().run(*[visit] * n) == [[3.0, 7.0, 1.0]] * n
