"""NuSLERP: arcs by weight, lines of a matrix one by one, and vectors that have no arc."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.memory import MemoryMerge
from tests.workers.models import assert_close, draw_normal, to_arrays
from tests.workers.references import nuslerp as reference
from workers.catalog import load_method

METHOD = load_method("nuslerp")
TWO_ROWS = ([[1.0, 0.0], [2.0, 2.0]], [[0.0, 1.0], [4.0, 4.0]])


def _merge(first: Any, second: Any, weights: tuple[float, float] = (1.0, 1.0), **parameters: Any) -> Tensor:
    models = [{"w": torch.tensor(first)}, {"w": torch.tensor(second)}]
    return MemoryMerge(METHOD, parameters, weights)(None, models)["w"]


def test_a_third_of_a_right_angle_by_weight() -> None:
    # weights 2 and 1: t = 1/3, so 30°
    merged = _merge([1.0, 0.0], [0.0, 1.0], (2.0, 1.0))
    torch.testing.assert_close(merged, torch.tensor([0.8660254, 0.5]), rtol=0, atol=1e-6)


def test_with_a_base_model_task_vectors_are_walked() -> None:
    models = [{"w": torch.tensor([6.0, 5.0])}, {"w": torch.tensor([5.0, 6.0])}]
    merged = MemoryMerge(METHOD)({"w": torch.tensor([5.0, 5.0])}, models)["w"]
    torch.testing.assert_close(merged, torch.full((2,), 5 + math.sqrt(0.5)), rtol=1e-6, atol=0)


def test_each_row_has_its_own_arc() -> None:
    # first row a right angle, second parallel: its mean
    merged = _merge(*TWO_ROWS, scope="row")
    torch.testing.assert_close(merged, torch.tensor([[math.sqrt(0.5)] * 2, [3.0, 3.0]]), rtol=1e-6, atol=0)


def test_columns_are_the_rows_of_the_transpose() -> None:
    first, second = (torch.tensor(rows).T.contiguous().tolist() for rows in TWO_ROWS)
    merged = _merge(first, second, scope="column")
    torch.testing.assert_close(merged, torch.tensor([[math.sqrt(0.5), 3.0]] * 2), rtol=1e-6, atol=0)


def test_weights_that_cancel_count_alike() -> None:
    assert _merge([1.0], [3.0], (1.0, -1.0)).tolist() == [2.0]


def test_weights_may_point_beyond_a_model() -> None:
    # t = -1/2 of a right angle: -45°
    merged = _merge([1.0, 0.0], [0.0, 1.0], (3.0, -1.0))
    torch.testing.assert_close(merged, torch.tensor([1.0, -1.0]) * math.sqrt(0.5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("scope", ["tensor", "row", "column"])
def test_zeros_opposites_and_scalars_take_the_straight_line(scope: str) -> None:
    assert _merge([0.0, 0.0], [4.0, 8.0], (3.0, 1.0), scope=scope).tolist() == [1.0, 2.0]
    assert _merge([1.0, 2.0], [-3.0, -6.0], scope=scope).tolist() == [-1.0, -2.0]
    assert float(_merge(1.0, 3.0, scope=scope)) == 2.0
    assert _merge([[1.0]], [[-3.0]], scope=scope).tolist() == [[-1.0]]


@pytest.mark.parametrize("scope", ["tensor", "row", "column"])
def test_an_empty_tensor_stays_empty(scope: str) -> None:
    models = [{"w": torch.empty(0, 3)}, {"w": torch.empty(0, 3)}]
    assert MemoryMerge(METHOD, {"scope": scope})(None, models)["w"].shape == (0, 3)


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    weights=st.tuples(*[st.sampled_from([0.25, 1.0, 3.0, -0.5])] * 2),
    scope=st.sampled_from(["tensor", "row", "column"]),
    is_based=st.booleans(),
)
def test_it_is_what_is_worked_by_hand(seed: int, weights: tuple[float, float], scope: str, is_based: bool) -> None:  # noqa: FBT001 drawn
    base, models = draw_normal(seed, 2)
    arrays, parameters = list(map(to_arrays, models)), {"scope": scope}
    expected = reference.merge(to_arrays(base) if is_based else None, arrays, weights, parameters)
    merged = MemoryMerge(METHOD, parameters, weights)(base if is_based else None, models)
    assert_close(merged, expected, atol=1e-5)


@pytest.mark.parametrize("scope", ["tensor", "row", "column"])
def test_pieces_do_not_show(scope: str) -> None:
    generator = torch.Generator().manual_seed(1)
    models = [{"w": torch.randn(37, 11, 13, generator=generator)} for _ in range(2)]
    whole = MemoryMerge(METHOD, {"scope": scope})(None, models)["w"]
    for piece_elements in (1, 13, 100, 1001):
        merge = MemoryMerge(METHOD, {"scope": scope}, piece_elements=piece_elements)
        assert torch.equal(merge(None, models)["w"], whole)
