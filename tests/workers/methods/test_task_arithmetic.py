"""Task arithmetic: golden numbers, linearity, negation, analogy."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from app.domain.catalog import load_catalog
from tests.workers.memory import MemoryMerge
from tests.workers.methods.golden import TASK_VECTORS, merge_example
from workers.catalog import load_method


def _merge(scaling_coefficient: float, weights: list[float], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(7, 3, generator=generator)
    models = [{"w": base + 0.1 * torch.randn(7, 3, generator=generator)} for _ in weights]
    merge = MemoryMerge(load_method("task_arithmetic"), {"scaling_coefficient": scaling_coefficient}, weights)
    return base.double(), merge({"w": base}, models)["w"].double()


def test_sum_of_the_example() -> None:
    # 0.3 times the column sums 2, 1.5, .75, 0, 1.5, .25
    assert merge_example("task_arithmetic", {"scaling_coefficient": 0.3}) == [0.6, 0.45, 0.225, 0.0, 0.45, 0.075]


def test_default_coefficient_is_03_for_several_models() -> None:
    assert merge_example("task_arithmetic", {}) == [0.6, 0.45, 0.225, 0.0, 0.45, 0.075]


def test_default_coefficient_is_1_for_one_model() -> None:
    assert merge_example("task_arithmetic", {}, task_vectors=TASK_VECTORS[:1]) == TASK_VECTORS[0].tolist()


def test_effective_parameters_name_the_coefficient_that_is_used() -> None:
    catalog = load_catalog()
    _, several = catalog.check("task_arithmetic", {}, has_base_model=True, weights=[1.0, 1.0])
    _, one = catalog.check("task_arithmetic", {}, has_base_model=True, weights=[-1.0])
    assert (several, one) == ({"scaling_coefficient": 0.3}, {"scaling_coefficient": 1.0})


def test_a_coefficient_that_is_given_wins_over_both_defaults() -> None:
    _, effective = load_catalog().check(
        "task_arithmetic", {"scaling_coefficient": 0.5}, has_base_model=True, weights=[1.0]
    )
    assert effective == {"scaling_coefficient": 0.5}


def test_scaling_zero_returns_base() -> None:
    base, merged = _merge(0.0, [1.0, 1.0])
    assert torch.equal(merged, base)


def test_negation_moves_the_other_way() -> None:
    base, added = _merge(1.0, [1.0])
    _, negated = _merge(1.0, [-1.0])
    torch.testing.assert_close(negated - base, base - added, rtol=0, atol=5e-7)


def test_analogy_with_the_same_pair_gives_the_third_task_vector() -> None:
    # τ_C + (τ_B − τ_A) with C = A leaves τ_B: the second row of the example
    vectors = TASK_VECTORS[[0, 1, 0]]
    analogy = merge_example("task_arithmetic", {"scaling_coefficient": 1.0}, [1.0, 1.0, -1.0], vectors)
    assert analogy == TASK_VECTORS[1].tolist()


def test_analogy_adds_the_difference_of_the_first_pair_to_the_third() -> None:
    # A is to B as C is to D: -τ1 + τ2 + τ3; first entry -3 + 1 - 2
    analogy = merge_example("task_arithmetic", {"scaling_coefficient": 1.0}, [-1.0, 1.0, 1.0])
    assert analogy == [-4.0, 3.5, -0.25, 0.0, -2.5, 0.75]


def test_analogy_of_equal_steps_finds_the_fourth_model() -> None:
    # the step from A to B is the one from C to D, so D is found exactly
    step, first, third = torch.tensor([[1.0, -2, 0, 3, 0, 1], [2.0, 1, 1, 0, 0, 1], [0.0, 1, -1, 2, 4, 0]])
    analogy = merge_example(
        "task_arithmetic", {"scaling_coefficient": 1.0}, [-1.0, 1.0, 1.0], torch.stack([first, first + step, third])
    )
    assert analogy == (third + step).tolist()


@given(st.floats(-2, 2, width=32), st.floats(-2, 2, width=32))
def test_the_change_is_linear_in_the_coefficient(first: float, second: float) -> None:
    base, merged_first = _merge(first, [1.0, 0.5])
    _, merged_second = _merge(second, [1.0, 0.5])
    _, merged_both = _merge(first + second, [1.0, 0.5])
    change = (merged_first - base) + (merged_second - base)
    torch.testing.assert_close(merged_both - base, change, rtol=0, atol=2e-6)
