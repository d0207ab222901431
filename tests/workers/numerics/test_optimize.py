"""Adam some rows at a time: as over the whole, in any unit, and where squares of slopes are beyond float32."""

import pytest
import torch
from torch import Tensor

from workers.numerics import optimize


def _walk(target: Tensor, *, steps: int, unit: float = 1.0, rows_at_once: int = 3) -> Tensor:
    """Walk towards a target, the slope being twice what is missing, in the unit."""
    walk = optimize.Walk(target, learning_rate=0.1, epsilon=optimize.EPSILON / unit)
    for step in range(1, steps + 1):
        for begin in range(0, len(target), rows_at_once):
            rows = slice(begin, begin + rows_at_once)
            walk.move(rows, (walk.point[rows] - target[rows]) * (2.0 / unit), step=step)
    return walk.point


def test_rows_walk_as_the_whole_does() -> None:
    target = torch.linspace(-2.0, 3.0, 28, dtype=torch.float64).view(7, 4)
    together = optimize.descend(
        torch.zeros_like(target), lambda point: 2.0 * (point - target), learning_rate=0.1, steps=40
    )
    torch.testing.assert_close(_walk(target, steps=40), together, rtol=1e-6, atol=1e-7)
    assert torch.equal(_walk(target, steps=40, rows_at_once=7), _walk(target, steps=40))


@pytest.mark.parametrize("unit", [2.0**-40, 2.0**60])
def test_the_unit_of_the_slopes_does_not_matter(unit: float) -> None:
    target = torch.linspace(-2.0, 3.0, 12, dtype=torch.float64).view(3, 4)
    torch.testing.assert_close(_walk(target, steps=10, unit=unit), _walk(target, steps=10), rtol=1e-12, atol=1e-12)


def test_slopes_whose_squares_are_beyond_float32_are_followed() -> None:
    target = torch.tensor([[1e30, -1e25, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(_walk(target, steps=5), 0.5 * target.sign(), rtol=1e-6, atol=0)
