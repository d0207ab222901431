"""AWD: golden numbers, the descent against the redundant vector itself, and what holds at the edges."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.memory import MemoryMerge
from tests.workers.methods.golden import TASK_VECTORS, merge_example
from tests.workers.models import assert_close, draw_normal, to_arrays
from tests.workers.references.awd_task_arithmetic import merge as by_hand
from workers.catalog import load_method
from workers.numerics.disentangle import Descent, mean_absolute_cosine, solve_redundancy, subtract_redundancy

LITERAL = {"normalize": False}
DEFAULT = Descent(norm_penalty=0.1, learning_rate=0.01, steps=300, is_normalized=True)
GRAM = TASK_VECTORS.double() @ TASK_VECTORS.double().T


def test_golden_coefficients_of_the_literal_descent() -> None:
    found = solve_redundancy(GRAM, Descent(0.1, 0.01, 300, is_normalized=False))
    assert found.tolist() == pytest.approx([-0.198996, -0.253713, -0.304086], abs=1e-6)
    assert float(mean_absolute_cosine(GRAM)) == pytest.approx(0.369473, abs=1e-6)
    assert float(mean_absolute_cosine(subtract_redundancy(GRAM, found))) == pytest.approx(0.160445, abs=1e-6)


def test_golden_merge_of_the_literal_descent() -> None:
    assert merge_example("awd_task_arithmetic", LITERAL) == [
        0.818275,
        0.864427,
        0.405635,
        -0.022668,
        0.739357,
        0.172732,
    ]


def test_orthogonal_task_vectors_have_nothing_redundant() -> None:
    assert solve_redundancy(torch.eye(3, dtype=torch.float64), DEFAULT).tolist() == [0.0, 0.0, 0.0]


def test_one_task_vector_has_nothing_redundant() -> None:
    assert solve_redundancy(torch.full((1, 1), 5.0, dtype=torch.float64), DEFAULT).tolist() == [0.0]


def test_equal_task_vectors_are_not_separable() -> None:
    gram = torch.full((2, 2), 3.0, dtype=torch.float64)
    assert mean_absolute_cosine(subtract_redundancy(gram, solve_redundancy(gram, DEFAULT))) == pytest.approx(1.0)


def test_a_large_penalty_leaves_the_task_vectors_alone() -> None:
    heavy = solve_redundancy(GRAM, Descent(1e9, 0.01, 300, is_normalized=True))
    assert heavy.abs().max() < 1e-6


def test_without_steps_it_is_task_arithmetic() -> None:
    merged = merge_example("awd_task_arithmetic", {"steps": 0, "scaling_coefficient": 0.3})
    assert merged == merge_example("task_arithmetic", {"scaling_coefficient": 0.3})


def test_the_scale_of_task_vectors_does_not_matter_when_normalized() -> None:
    torch.testing.assert_close(solve_redundancy(GRAM * 1e-8, DEFAULT), solve_redundancy(GRAM, DEFAULT))


@given(seed=st.integers(0, 10_000), n=st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_the_cosines_shrink(seed: int, n: int) -> None:
    vectors = torch.randn(n, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    gram = vectors @ vectors.T
    before, after = (
        mean_absolute_cosine(gram),
        mean_absolute_cosine(subtract_redundancy(gram, solve_redundancy(gram, DEFAULT))),
    )
    assert after <= before


@given(
    seed=st.integers(0, 10_000),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, -1.0]), min_size=1, max_size=4),
    scope=st.sampled_from(["global", "tensor", "row"]),
    normalize=st.sampled_from(["normalized", "literal"]),
    steps=st.integers(0, 12),
    norm_penalty=st.sampled_from([0.0, 0.1, 1.0]),
)
@settings(max_examples=40, deadline=None)
def test_agrees_with_descent_on_the_vector_itself(  # noqa: PLR0913 one argument a parameter
    seed: int, weights: list[float], scope: str, normalize: str, steps: int, norm_penalty: float
) -> None:
    parameters: dict[str, Any] = {
        "scope": scope, "normalize": normalize == "normalized", "steps": steps, "norm_penalty": norm_penalty,
        "learning_rate": 0.01, "scaling_coefficient": 0.5,
    }  # fmt: skip
    base, models = draw_normal(seed, len(weights))
    for tensors in (base, *models):  # descent in one dimension turns on the last bit: every cosine is 1 or -1
        tensors.pop("norm"), tensors.pop("scale")
    merged = MemoryMerge(load_method("awd_task_arithmetic"), parameters, weights)(base, models)
    expected = by_hand(to_arrays(base), [to_arrays(model) for model in models], weights, parameters)
    assert_close(merged, expected, rtol=1e-5, atol=1e-5)
