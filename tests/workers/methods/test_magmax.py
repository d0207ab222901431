"""MagMax: golden numbers, and who wins a tie."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.memory import MemoryMerge
from tests.workers.methods.golden import TASK_VECTORS, merge_example
from tests.workers.models import assert_close, draw_normal, to_arrays
from tests.workers.references.find import load_reference
from workers.catalog import load_method

METHOD = load_method("magmax")


def test_the_golden_result() -> None:
    # fourth entry: 0.5 and -0.5, the later one wins
    assert merge_example("magmax", {}) == [1.5, 1.0, 0.375, -0.25, 1.0, 0.3125]


def test_the_later_of_equal_magnitudes_wins() -> None:
    reversed_order = TASK_VECTORS.flip(0)
    assert merge_example("magmax", {}, task_vectors=reversed_order)[3] == 0.25


def test_a_scalar_is_the_one_that_moved_farthest() -> None:
    models = [{"w": torch.tensor(value)} for value in (2.0, -4.0, 3.0)]
    merged = MemoryMerge(METHOD, {"scaling_coefficient": 1.0})({"w": torch.tensor(0.0)}, models)["w"]
    assert float(merged) == -4.0


def test_a_task_vector_of_zero_has_no_say() -> None:
    base = {"w": torch.tensor([1.0, 2.0])}
    merged = MemoryMerge(METHOD, {"scaling_coefficient": 1.0})(base, [{"w": torch.tensor([3.0, 2.0])}, base])["w"]
    assert merged.tolist() == [3.0, 2.0]


@settings(deadline=None)
@given(seed=st.integers(0, 1000), n_models=st.integers(1, 5), coefficient=st.floats(-2, 2))
def test_it_is_what_is_worked_by_hand(seed: int, n_models: int, coefficient: float) -> None:
    base, models = draw_normal(seed, n_models)
    parameters = {"scaling_coefficient": coefficient}
    expected = load_reference("magmax")(to_arrays(base), list(map(to_arrays, models)), [], parameters)
    assert_close(MemoryMerge(METHOD, parameters)(base, models), expected)
