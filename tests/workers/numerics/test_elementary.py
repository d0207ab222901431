"""Exponentials and hyperbolic tangents are torch's to the last digits, at both ends of their range, too."""

import torch

from workers.numerics import elementary


def test_exponentials_are_right_to_the_last_bits() -> None:
    x = torch.linspace(-699.0, 0.0, 100_001, dtype=torch.float64)
    torch.testing.assert_close(elementary.exp(x), x.exp(), rtol=5e-16, atol=0)
    assert elementary.exp(torch.zeros(1, dtype=torch.float64)).item() == 1.0
    assert elementary.exp(torch.tensor([-1e300, -torch.inf], dtype=torch.float64)).max() < 1e-300


def test_hyperbolic_tangents_are_those_of_torch() -> None:
    sizes = torch.cat((torch.logspace(-30, 2, 10_001, dtype=torch.float64), torch.tensor([0.0, 1.0, 1e300])))
    x = torch.cat((sizes, -sizes))
    torch.testing.assert_close(elementary.tanh(x), torch.tanh(x), rtol=2e-14, atol=0)
    assert elementary.tanh(x).abs().max() == 1.0
    near = x[x.abs() <= 1]
    assert torch.equal(elementary.tanh(near), elementary.tanh_near_0(near))
