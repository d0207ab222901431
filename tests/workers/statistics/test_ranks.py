"""The search behind boundaries: right for any luck with the sample, any bin width, any block a tie lies in."""

from dataclasses import replace
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.memory import MemorySource
from workers.contract import Piece
from workers.numerics.sparsify import EVERYTHING, NOTHING, Boundary
from workers.statistics.rank_scopes import Effort, Scope
from workers.statistics.rank_ties import TIE_PIECE_ELEMENTS
from workers.statistics.ranks import select
from workers.statistics.views import ChangedSource

COUNTED = Effort(small_scope=0)  # nothing is held
BLIND = replace(
    COUNTED, margin=0.0, min_sample_runs=1, max_sample_runs=1, sample_run_elements=1
)  # guesses that are nearly always wrong
COARSE = replace(BLIND, n_counts=16)  # 256 bins: several passes, blocks joined all the time
EFFORTS = {"held": Effort(), "counted": COUNTED, "blind": BLIND, "coarse": COARSE}


def scope_of(source: MemorySource, ranks: tuple[int, ...]) -> Scope:
    parts = tuple((name, prod(shape), position) for name, shape, position in source.tensors if prod(shape))
    return Scope(parts, sum(size for _, size, _ in parts), ranks)


def expected_boundary(values: Tensor, rank: int) -> tuple[float, int]:
    """Return the magnitude of the rank-th entry in a stable sort, and the flat index of that entry."""
    order = np.lexsort((np.arange(len(values)), -values.abs().numpy()))
    index = int(order[rank - 1])
    return float(values[index].abs()), index


def assert_bounds(boundary: Boundary, values: Tensor, rank: int) -> None:
    magnitude, index = expected_boundary(values, rank)
    assert boundary.magnitude == magnitude
    ties = (values.abs() == magnitude).nonzero().flatten().tolist()
    assert [tie for tie in ties if tie < boundary.index] == [tie for tie in ties if tie <= index]


@pytest.mark.parametrize("effort", EFFORTS)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_distinct=st.sampled_from([1, 2, 5, 1000, 0]),  # 0: all different
    share=st.floats(0.001, 0.999),
    piece_elements=st.sampled_from([7, 64, 10_000]),
)
def test_the_boundary_is_that_of_a_stable_sort(
    effort: str, seed: int, n_distinct: int, share: float, piece_elements: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    models = []
    for _ in range(2):
        values = torch.randn(999, generator=generator)
        values = (values * n_distinct).round() / 8 if n_distinct else values
        models.append({"a": values[:300], "b": values[300:301], "c": values[301:].view(2, 349), "none": torch.empty(0)})
    base = {name: torch.zeros_like(tensor) for name, tensor in models[0].items()}
    source = MemorySource(base, models, piece_elements=piece_elements)
    rank = max(1, int(share * 999))
    (found,) = select(source, [scope_of(source, (rank, 999 - rank))], EFFORTS[effort])
    for model, boundaries in zip(models, found, strict=True):
        values = torch.cat([model[name].flatten() for name in sorted(model)])
        assert_bounds(boundaries[0], values, rank)
        assert_bounds(boundaries[1], values, 999 - rank)


def test_the_usual_effort_settles_a_large_scope_in_one_pass() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1 << 20, generator=generator)
    for model in (values, values.bfloat16().float()):
        source = CountingSource(None, [{"w": model}], piece_elements=1 << 16)
        scope = scope_of(source, (1 << 17,))
        (found,) = select(source, [scope], Effort())
        assert_bounds(found[0][0], model, 1 << 17)
        assert source.n_pieces == [16]


def test_rows_of_different_scale_do_not_mislead_the_sample_for_long() -> None:
    generator = torch.Generator().manual_seed(1)
    scales = torch.logspace(-3, 3, 512).unsqueeze(1)
    values = (torch.randn(512, 1024, generator=generator) * scales).flatten()
    source = CountingSource(None, [{"w": values}], piece_elements=1 << 16)
    (found,) = select(source, [scope_of(source, (100_000,))], Effort())
    assert_bounds(found[0][0], values, 100_000)
    assert len(source.n_pieces) <= 2


def test_ranks_of_none_and_of_all_need_no_reading() -> None:
    source = CountingSource(None, [{"w": torch.ones(3)}])
    (found,) = select(source, [scope_of(source, (0, 3))], Effort())
    assert found == ((NOTHING, EVERYTHING),)
    assert source.n_pieces == []


def test_an_empty_scope_keeps_nothing_and_everything() -> None:
    source = MemorySource(None, [{"w": torch.empty(0)}])
    (found,) = select(source, [Scope((), 0, (0, 0))], Effort())
    assert found == ((NOTHING, NOTHING),)


def test_scopes_are_ranked_apart_small_and_large_ones() -> None:
    generator = torch.Generator().manual_seed(2)
    model = {"a": torch.randn(50, generator=generator), "b": torch.randn(5000, generator=generator)}
    source = MemorySource(None, [model], piece_elements=64)
    scopes = [Scope((("a", 50, 0),), 50, (10,)), Scope((("b", 5000, 0),), 5000, (100, 200))]
    found = select(source, scopes, Effort(small_scope=100))
    assert_bounds(found[0][0][0], model["a"], 10)
    assert_bounds(found[1][0][0], model["b"], 100)
    assert_bounds(found[1][0][1], model["b"], 200)


def test_ties_far_behind_are_found_without_reading_all_again() -> None:
    values = torch.zeros(1 << 16)
    values[::2] = 1.0
    source = CountingSource(None, [{"w": values}], piece_elements=1 << 10)
    (found,) = select(source, [scope_of(source, (30_000,))], COUNTED)
    assert found == ((Boundary(1.0, 59_999),),)  # the 30,000th one lies at index 59,998
    assert source.n_pieces == [64]


def test_ties_are_found_in_pieces_where_no_kernel_reads() -> None:
    values = torch.zeros(5 * TIE_PIECE_ELEMENTS)
    values[::2] = 1.0
    sizes: list[int] = []

    def see(piece: Piece) -> Piece:
        sizes.append(piece.finetuned.shape[1])
        return piece

    source = MemorySource(None, [{"w": values}])  # all of it is one block
    rank = 2 * TIE_PIECE_ELEMENTS
    (found,) = select(ChangedSource(source, see, "element"), [scope_of(source, (rank,))], COUNTED)
    assert found == ((Boundary(1.0, 2 * rank - 1),),)
    assert sizes.count(TIE_PIECE_ELEMENTS) == 4  # none behind the tie


class CountingSource(MemorySource):
    """Counts the pieces of each pass."""

    @property
    def n_pieces(self) -> list[int]:
        counts: list[int] = self.__dict__.setdefault("_n_pieces", [])
        return counts

    def map(self, function, tensors=None, *, granularity="element"):  # type: ignore[no-untyped-def]
        self.n_pieces.append(0)
        for result in super().map(function, tensors, granularity=granularity):
            self.n_pieces[-1] += 1
            yield result
