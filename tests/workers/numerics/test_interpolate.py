"""Paths between tensors: ends, equal tensors, and sums that do not depend on threads."""

import torch

from workers.numerics import interpolate


def test_the_line_is_exact_at_its_ends_and_between_equals() -> None:
    first, second = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(interpolate.interpolate_linearly(first, second, 0.0), first)
    assert torch.equal(interpolate.interpolate_linearly(first, second, 1.0), second)
    assert torch.equal(interpolate.interpolate_linearly(first, first, 0.3), first)


def test_tiny_norms_still_have_an_angle() -> None:
    # 1e-30 apart from 0, squared 1e-60: zero in float32, a number in float64
    first, second = torch.tensor([1e-30, 0.0]), torch.tensor([0.0, 1e-30])
    merged = interpolate.interpolate_spherically(first, second, 0.5)
    torch.testing.assert_close(merged * 1e30, torch.full((2,), 0.5**0.5), rtol=1e-6, atol=0)


def test_the_arc_does_not_depend_on_the_number_of_threads() -> None:
    first, second = torch.randn(2, 200_001, generator=torch.Generator().manual_seed(0))
    n_threads = torch.get_num_threads()
    merged = []
    for n in (1, 2, 4):
        torch.set_num_threads(n)
        merged.append(interpolate.interpolate_spherically(first, second, 0.3))
    torch.set_num_threads(n_threads)
    assert torch.equal(merged[0], merged[1])
    assert torch.equal(merged[0], merged[2])
