"""Ranks: exact counts, ties by position, and boundaries that hold on any piece."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.numerics import sparsify
from workers.numerics.sparsify import EVERYTHING, NOTHING, Boundary

VECTOR = torch.tensor([1.0, -3.0, 2.0, -2.0, 2.0])


@pytest.mark.parametrize(
    ("density", "n", "count"),
    [(0.3, 10, 3), (0.1, 30, 3), (0.29, 100, 29), (0.2, 4, 0), (1.0, 7, 7), (0.5, 0, 0), (0.7, 10, 7), (0.15, 100, 15)],
)
def test_counts_are_whole_numbers_where_the_product_is(density: float, n: int, count: int) -> None:
    assert sparsify.count_kept(density, n) == count


def test_rank_zero_keeps_nothing_and_the_last_rank_everything() -> None:
    assert not sparsify.keep_first(VECTOR, NOTHING, start=0).any()
    assert torch.equal(sparsify.keep_first(VECTOR, EVERYTHING, start=0), VECTOR)


def test_ties_are_kept_from_the_front() -> None:
    # ranks: -3; then 2 at 2, -2 at 3, 2 at 4; then 1. The first three end behind index 3
    assert sparsify.keep_first(VECTOR, Boundary(2.0, 4), start=0).tolist() == [0.0, -3.0, 2.0, -2.0, 0.0]


def test_ties_before_and_behind_the_boundary_index() -> None:
    assert sparsify.keep_first(VECTOR, Boundary(2.0, 4), start=100).tolist() == [0.0, -3.0, 0.0, 0.0, 0.0]
    assert sparsify.keep_first(VECTOR, Boundary(2.0, 400), start=100).tolist() == [0.0, -3.0, 2.0, -2.0, 2.0]


def test_the_smallest_numbers_are_told_from_their_neighbors() -> None:
    # 1.4e-45 is the smallest float32 number; a tie with it is none with 0
    vector = torch.tensor([0.0, 1.4e-45, -2.8e-45])
    assert sparsify.keep_first(vector, Boundary(float(vector[1]), 2), start=0).count_nonzero() == 2
    assert sparsify.keep_first(vector, Boundary(float(vector[1]), 1), start=0).count_nonzero() == 1


def test_a_band_lies_between_two_boundaries() -> None:
    # ranks 1 and 2: behind -3, up to -2 at index 3
    band = sparsify.keep_band(VECTOR, Boundary(3.0, 2), Boundary(2.0, 4), start=0)
    assert band.tolist() == [0.0, 0.0, 2.0, -2.0, 0.0]


def test_a_band_from_the_top_is_what_comes_first() -> None:
    assert torch.equal(
        sparsify.keep_band(VECTOR, NOTHING, Boundary(2.0, 4), start=0),
        sparsify.keep_first(VECTOR, Boundary(2.0, 4), start=0),
    )


def test_rows_are_ranked_on_their_own() -> None:
    rows = torch.tensor([[1.0, -3.0, 2.0], [5.0, 5.0, -5.0]])
    assert sparsify.keep_band_of_rows(rows, (1, 2)).tolist() == [[0.0, 0.0, 2.0], [0.0, 5.0, 0.0]]


def test_rows_without_entries_have_no_band() -> None:
    assert sparsify.keep_band_of_rows(torch.empty(2, 0), (0, 0)).shape == (2, 0)


@given(
    rows=st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1, max_size=4),
    first=st.integers(0, 6),
    n_kept=st.integers(0, 6),
)
def test_rows_keep_the_ranks_of_a_stable_sort(rows: list[list[int]], first: int, n_kept: int) -> None:
    last = min(6, first + n_kept)
    kept = sparsify.keep_band_of_rows(torch.tensor(rows, dtype=torch.float32), (first, last))
    for row, found in zip(rows, kept.tolist(), strict=True):
        order = sorted(range(6), key=lambda index: (-abs(row[index]), index))[first:last]
        assert found == [value if index in order else 0 for index, value in enumerate(row)]


def test_trim_sets_the_rest_to_zero_and_changes_no_argument() -> None:
    deltas = torch.stack([VECTOR, 2 * VECTOR])
    before = deltas.clone()
    trimmed = sparsify.trim(deltas, [Boundary(3.0, 2), EVERYTHING], start=0)
    assert trimmed.tolist() == [[0.0, -3.0, 0.0, 0.0, 0.0], (2 * VECTOR).tolist()]
    assert torch.equal(deltas, before)


def test_an_empty_vector_stays_empty() -> None:
    assert sparsify.keep_first(torch.empty(0), Boundary(1.0, 5), start=3).shape == (0,)


@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=20),
    rank=st.integers(0, 20),
    piece=st.integers(1, 20),
)
def test_a_boundary_keeps_its_rank_on_any_cut(values: list[int], rank: int, piece: int) -> None:
    vector = torch.tensor(values, dtype=torch.float32)
    order = sorted(range(len(values)), key=lambda index: (-abs(values[index]), index))
    kept = order[:rank]
    if rank >= len(values):
        boundary = EVERYTHING
    elif rank == 0:
        boundary = NOTHING
    else:
        boundary = Boundary(abs(values[kept[-1]]), kept[-1] + 1)
    parts = [
        sparsify.keep_first(part, boundary, start=piece * index)
        for index, part in enumerate(torch.split(vector, piece))
    ]
    assert torch.cat(parts).tolist() == [value if index in kept else 0 for index, value in enumerate(values)]


@pytest.mark.parametrize(
    ("n_kept", "expected"),
    [(0, [0, 0, 0, 0]), (1, [0, 0, 1, 0]), (2, [1, 0, 1, 0]), (3, [1, 1, 1, 0]), (4, [1, 1, 1, 1])],
)
def test_the_largest_are_marked_run_by_run_and_of_equal_ones_the_first(n_kept: int, expected: list[int]) -> None:
    scores = torch.tensor([2.0, 2.0, 3.0, 2.0], dtype=torch.float64)
    last, n_tied = sparsify.find_last(scores.clone(), n_kept)
    front, n_tied = sparsify.mark_from(scores[:1], last, n_tied)
    back, n_tied = sparsify.mark_from(scores[1:], last, n_tied)
    assert [*front.tolist(), *back.tolist()] == expected
    assert n_tied == 0


def test_nothing_is_marked_of_nothing() -> None:
    assert sparsify.mark_from(torch.empty(0), *sparsify.find_last(torch.empty(0), 0))[0].tolist() == []


@pytest.mark.parametrize("n_kept", [1, 2, 5000, 99_999, 100_000])
@pytest.mark.parametrize("kind", ["spread", "few", "sorted", "periodic"])
def test_the_last_of_many_is_found_wherever_a_sample_looks(kind: str, n_kept: int) -> None:
    scores = torch.randn(100_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if kind == "few":
        scores = scores.round()
    elif kind == "sorted":
        scores = scores.sort().values
    elif kind == "periodic":
        scores[::3] = 100.0  # all that the sample sees
    last, n_tied = sparsify.find_last(scores.clone(), n_kept)
    kept = scores.sort(descending=True).values[:n_kept]
    assert (last, n_tied) == (float(kept[-1]), int((kept == kept[-1]).sum()))
