"""Average: golden numbers, weights, and the bounds of a mean."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import InvalidParameters
from tests.workers.memory import MemoryMerge
from tests.workers.methods.golden import merge_example
from workers.catalog import load_method


def test_mean_of_the_example() -> None:
    # column sums 2, 1.5, .75, 0, 1.5, .25, divided by 3
    assert merge_example("average", {}) == [0.666667, 0.5, 0.25, 0.0, 0.5, 0.083333]


def test_weights_are_relative_when_normalized() -> None:
    # (2·3 + 1·1 + 1·(-2)) / 4 = 1.25
    assert merge_example("average", {}, [2.0, 1.0, 1.0])[0] == 1.25
    assert merge_example("average", {}, [20.0, 10.0, 10.0])[0] == 1.25


def test_without_normalization_weights_are_factors() -> None:
    # 2·3 + 1·1 + 1·(-2) = 5
    assert merge_example("average", {"normalize": False}, [2.0, 1.0, 1.0])[0] == 5.0


def test_weights_that_sum_to_zero_are_refused_when_normalized() -> None:
    with pytest.raises(InvalidParameters, match=r"sum to 0.*set normalize to false"):
        merge_example("average", {}, [1.0, 1.0, -2.0])


def test_weights_that_sum_to_zero_are_allowed_without_normalization() -> None:
    # 3 + 1 - 2·(-2) = 8
    assert merge_example("average", {"normalize": False}, [1.0, 1.0, -2.0])[0] == 8.0


def test_the_base_model_does_not_count() -> None:
    model = {"w": torch.tensor([1.0, 2.0])}
    merge = MemoryMerge(load_method("average"))
    assert torch.equal(merge({"w": torch.tensor([9.0, 9.0])}, [model])["w"], merge(None, [model])["w"])


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=5),
    st.lists(st.floats(0.125, 8.0, width=32), min_size=5, max_size=5),
)
def test_a_mean_with_positive_weights_stays_between_its_models(values: list[float], weights: list[float]) -> None:
    merge = MemoryMerge(load_method("average"), weights=weights[: len(values)])
    merged = float(merge(None, [{"w": torch.tensor(value)} for value in values])["w"])
    assert min(values) <= merged <= max(values)
