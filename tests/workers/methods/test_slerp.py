"""Slerp: golden arcs, ends, symmetry, and the tensors that have no angle."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.memory import MemoryMerge
from workers.catalog import load_method


def _slerp(first: torch.Tensor, second: torch.Tensor, t: float) -> torch.Tensor:
    return MemoryMerge(load_method("slerp"), {"t": t})(None, [{"w": first}, {"w": second}])["w"]


def test_a_third_of_a_right_angle() -> None:
    # from (1, 0) to (0, 1): 30 degrees, (cos 30°, sin 30°)
    merged = _slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 1 / 3)
    torch.testing.assert_close(merged, torch.tensor([0.8660254, 0.5]), rtol=0, atol=1e-6)


def test_norms_are_interpolated_not_removed() -> None:
    # half of a right angle, norms 2 and 4: sin 45° · (2, 4)
    merged = _slerp(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0]), 0.5)
    torch.testing.assert_close(merged, torch.tensor([2.0, 4.0]) * math.sqrt(0.5), rtol=0, atol=1e-6)


def test_the_angle_is_that_of_the_whole_tensor() -> None:
    first, second = torch.eye(2), torch.eye(2).flip(0)  # flattened (1,0,0,1) and (0,1,1,0): a right angle
    torch.testing.assert_close(_slerp(first, second, 0.5), torch.full((2, 2), math.sqrt(0.5)), rtol=0, atol=1e-6)


def test_a_zero_tensor_takes_the_straight_line() -> None:
    assert torch.equal(_slerp(torch.zeros(2), torch.tensor([4.0, 8.0]), 0.25), torch.tensor([1.0, 2.0]))


def test_nearly_parallel_tensors_take_the_straight_line() -> None:
    assert torch.equal(_slerp(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0]), 0.5), torch.tensor([1.5, 1.5]))


def test_opposite_tensors_take_the_straight_line_through_zero() -> None:
    assert torch.equal(_slerp(torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0]), 0.5), torch.zeros(2))


def test_a_scalar_takes_the_straight_line() -> None:
    assert float(_slerp(torch.tensor(1.0), torch.tensor(3.0), 0.25)) == 1.5


def test_an_empty_tensor_stays_empty() -> None:
    assert _slerp(torch.empty(0, 3), torch.empty(0, 3), 0.5).shape == (0, 3)


def test_equal_tensors_come_back_exactly() -> None:
    tensor = torch.randn(33, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_slerp(tensor, tensor, 0.3), tensor)


@given(st.integers(0, 1000), st.floats(0, 1))
def test_swapping_the_models_and_t_changes_nothing(seed: int, t: float) -> None:
    first, second = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(_slerp(first, second, t), _slerp(second, first, 1 - t), rtol=1e-6, atol=1e-6)


@given(st.integers(0, 1000))
def test_the_ends_are_the_models(seed: int) -> None:
    first, second = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(_slerp(first, second, 0.0), first, rtol=1e-6, atol=0)
    torch.testing.assert_close(_slerp(first, second, 1.0), second, rtol=1e-6, atol=0)


@given(st.integers(0, 1000), st.floats(0, 1))
def test_equal_norms_are_kept(seed: int, t: float) -> None:
    first, second = torch.randn(2, 15, generator=torch.Generator().manual_seed(seed))
    second = second * (first.norm() / second.norm())
    torch.testing.assert_close(_slerp(first, second, t).norm(), first.norm(), rtol=1e-5, atol=0)


def test_the_line_is_exact_at_its_ends() -> None:
    first, second = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_slerp(first, second, 0.0), first)
    assert torch.equal(_slerp(first, second, 1.0), second)


def test_tiny_norms_still_have_an_angle() -> None:
    # 1e-30 apart from 0, squared 1e-60: zero in float32, a number in float64
    merged = _slerp(torch.tensor([1e-30, 0.0]), torch.tensor([0.0, 1e-30]), 0.5)
    torch.testing.assert_close(merged * 1e30, torch.full((2,), 0.5**0.5), rtol=1e-6, atol=0)
