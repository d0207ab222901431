"""Scaling by depth: the line over the layers, its ends, one layer, and tensors of no layer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.numerics import depth


def test_the_scale_grows_in_a_line_from_the_first_layer_to_the_last() -> None:
    scales = [depth.scale_of_layer(layer, 4, first=0.25, slope=0.75) for layer in range(4)]
    assert scales == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(("layer", "n_layers"), [(None, 12), (0, 1), (None, 0)])
def test_what_is_in_no_layer_and_an_only_layer_have_the_first_scale(layer: int | None, n_layers: int) -> None:
    assert depth.scale_of_layer(layer, n_layers, first=0.25, slope=0.75) == 0.25


def test_the_papers_first_scale() -> None:
    assert depth.first_scale(6.0, 4.0, 3) == 0.5
    assert depth.first_scale(0.0, 0.0, 4) == 0.25  # nothing was merged


@given(st.integers(0, 1000), st.floats(-1, 2))
def test_the_change_is_scaled(seed: int, scale: float) -> None:
    base, merged = torch.randn(2, 7, generator=torch.Generator().manual_seed(seed))
    scaled = depth.scale_change(base, merged, scale)
    torch.testing.assert_close(scaled, base + scale * (merged - base), rtol=1e-5, atol=1e-5)


def test_a_scale_of_one_gives_the_merge_and_of_zero_the_base_to_the_bit() -> None:
    base, merged = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(depth.scale_change(base, merged, 1.0), merged)
    assert torch.equal(depth.scale_change(base, merged, 0.0), base)


def test_a_tensor_equal_to_the_base_stays() -> None:
    base = torch.randn(50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(depth.scale_change(base, base, 0.3), base)
