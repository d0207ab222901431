"""ExPO: both ends, beyond them, and the average of several models."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.errors import Invalid
from tests.workers.memory import MemoryMerge
from tests.workers.models import assert_close, draw_normal, to_arrays
from tests.workers.references.find import load_reference
from workers.catalog import load_method

METHOD = load_method("expo")
BASE = {"w": torch.tensor([1.0, 2.0])}


def _merge(*values: list[float], weights: tuple[float, ...] = (), factor: float = 0.5) -> list[float]:
    models = [{"w": torch.tensor(value)} for value in values]
    merged: list[float] = MemoryMerge(METHOD, {"extrapolation_factor": factor}, weights)(BASE, models)["w"].tolist()
    return merged


def test_it_goes_on_by_a_fraction_of_the_way() -> None:
    # from 1 to 3 and half of 2 beyond: 4; from 2 to 0 and 1 beyond: -1
    assert _merge([3.0, 0.0]) == [4.0, -1.0]


@pytest.mark.parametrize(("factor", "expected"), [(0.0, [3.0, 0.0]), (-1.0, [1.0, 2.0]), (-0.5, [2.0, 1.0])])
def test_the_ends_of_the_way(factor: float, expected: list[float]) -> None:
    assert _merge([3.0, 0.0], factor=factor) == expected


def test_several_models_are_averaged_by_weight_first() -> None:
    # (3 · 3 + 1 · 7) / 4 = 4: from 1 to 4 and half of 3 beyond
    assert _merge([3.0, 2.0], [7.0, 2.0], weights=(3.0, 1.0)) == [5.5, 2.0]


def test_weights_that_are_all_zero_are_refused() -> None:
    with pytest.raises(Invalid, match=r"expo divides by the sum of the weights, which is 0 for tensor 'w'"):
        _merge([3.0, 2.0], weights=(0.0,))


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    weights=st.lists(st.sampled_from([0.25, 1.0, 2.0]), min_size=1, max_size=5),
    factor=st.floats(-2, 2),
)
def test_it_is_what_is_worked_by_hand(seed: int, weights: list[float], factor: float) -> None:
    base, models = draw_normal(seed, len(weights))
    parameters = {"extrapolation_factor": factor}
    expected = load_reference("expo")(to_arrays(base), list(map(to_arrays, models)), weights, parameters)
    assert_close(MemoryMerge(METHOD, parameters, weights)(base, models), expected)
