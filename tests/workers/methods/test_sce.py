"""SCE: golden numbers, selection by variance, shares by energy, and both variants."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.memory import MemoryMerge
from tests.workers.methods.golden import TASK_VECTORS, merge_example
from tests.workers.models import assert_close, draw_normal, to_arrays
from tests.workers.references.find import load_reference
from workers.catalog import load_method
from workers.methods import sce

METHOD = load_method("sce")


def _merge(vectors: list[list[float]], **parameters: Any) -> Tensor:
    models = [{"w": torch.tensor(vector)} for vector in vectors]
    return MemoryMerge(METHOD, parameters)({"w": torch.zeros(len(vectors[0]))}, models)["w"]


def _select(deltas: Tensor, density: float) -> list[int]:
    return sce.select(torch.zeros_like(deltas[0]), deltas, density).long().tolist()


def _weigh(deltas: Tensor) -> list[float]:
    base = torch.zeros_like(deltas[0])
    return sce.weigh(base, deltas, sce.select(base, deltas, 1.0))


def test_the_golden_shares() -> None:
    assert _weigh(TASK_VECTORS) == pytest.approx([0.501643, 0.272180, 0.226177], abs=1e-6)


def test_the_golden_result() -> None:
    expected = [2.296532, 1.319231, 0.57769, 0.5, 1.68924, 0.625]
    assert merge_example("sce", {}) == pytest.approx(expected, abs=1e-6)


def test_the_entries_of_largest_variance_are_selected_of_those_that_differ() -> None:
    # variances 1, 0, 4, 0, 9/4: half of the three that differ is one
    deltas = torch.tensor([[1.0, 7.0, 2.0, 0.0, 0.0], [3.0, 7.0, -2.0, 0.0, 3.0]])
    assert _select(deltas, 0.5) == [0, 0, 1, 0, 0]
    assert _select(deltas, 0.67) == [0, 0, 1, 0, 1]


def test_equal_variances_are_selected_from_the_front() -> None:
    assert _select(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]), 0.5) == [1, 1, 0, 0]


def test_entries_are_selected_across_runs() -> None:
    # in the first run every other variance is the largest, in the second one all are: half of 150000 is 75000
    deltas = torch.zeros(2, 150_000)
    deltas[0] = 1.0
    deltas[0, 1 : sce.RUN_ELEMENTS : 2] = 0.5
    selected = torch.tensor(_select(deltas, 0.5))
    n_first = sce.RUN_ELEMENTS // 2
    assert selected[: sce.RUN_ELEMENTS].tolist() == [1, 0] * n_first
    assert selected[sce.RUN_ELEMENTS :].nonzero().flatten().tolist() == list(range(75_000 - n_first))


def test_a_small_tensor_keeps_an_entry() -> None:
    # (1 + 2) agree, shares 1/5 and 4/5
    assert _merge([[1.0], [2.0]], density=0.1).tolist() == pytest.approx([9 / 5])


def test_tiny_task_vectors_have_shares_too() -> None:
    # mergekit takes equal shares where the mean squares add up to less than 1e-6
    assert _weigh(torch.tensor([[3e-4], [9e-4]])) == pytest.approx([0.1, 0.9])


def test_in_the_other_variant_the_selection_decides_shares_alone() -> None:
    # only the first entry is selected: shares 1/5, 4/5; then both entries are merged
    vectors = [[1.0, 4.0], [-2.0, 4.0]]
    assert _merge(vectors, density=0.5, variant="fuseai").tolist() == pytest.approx([-2.0, 4.0])
    assert _merge(vectors, density=0.5).tolist() == pytest.approx([-2.0, 0.0])


def test_one_model_has_no_variance_to_select_by() -> None:
    assert _merge([[1.0, 2.0]], density=0.5).tolist() == [0.0, 0.0]
    assert _merge([[1.0, 2.0]]).tolist() == [1.0, 2.0]


def test_balanced_signs_are_positive() -> None:
    assert _merge([[2.0, 0.0], [-2.0, 0.0]]).tolist() == [2.0, 0.0]


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_models=st.integers(1, 5),
    density=st.floats(0.01, 1.0),
    variant=st.sampled_from(["mergekit", "fuseai"]),
)
def test_it_is_what_is_worked_by_hand(seed: int, n_models: int, density: float, variant: str) -> None:
    base, models = draw_normal(seed, n_models)
    parameters = {"density": density, "variant": variant}
    expected = load_reference("sce")(to_arrays(base), list(map(to_arrays, models)), [], parameters)
    assert_close(MemoryMerge(METHOD, parameters)(base, models), expected)
