"""NearSwap: what is near is swapped, what is far moves by the step."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.memory import MemoryMerge
from tests.workers.models import assert_close, draw_normal, to_arrays
from tests.workers.references.find import load_reference
from workers.catalog import load_method

METHOD = load_method("nearswap")


def _merge(base: torch.Tensor, model: torch.Tensor, max_change: float) -> torch.Tensor:
    return MemoryMerge(METHOD, {"max_change": max_change})({"w": base}, [{"w": model}])["w"]


def test_near_entries_are_swapped_and_far_ones_move_by_the_step() -> None:
    # distances 0.25, 2 and -8 at a step of 0.5
    merged = _merge(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.25, 3.0, -7.0]), 0.5)
    assert merged.tolist() == [1.25, 1.5, 0.5]


def test_a_step_of_zero_gives_the_base_model() -> None:
    base, model = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_merge(base, model, 0.0), base)


def test_a_large_step_gives_the_model_to_the_bit() -> None:
    base, model = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_merge(base, model, 100.0), model)


def test_steps_below_a_millionth_are_steps_like_others() -> None:
    # mergekit's floor on distances would move the entry by half of its distance
    merged = _merge(torch.tensor(0.0), torch.tensor(5e-7), 5e-7)
    assert float(merged) == float(torch.tensor(5e-7))


@settings(deadline=None)
@given(seed=st.integers(0, 1000), max_change=st.floats(0, 0.5))
def test_it_is_what_is_worked_by_hand(seed: int, max_change: float) -> None:
    base, models = draw_normal(seed, 1)
    parameters = {"max_change": max_change}
    expected = load_reference("nearswap")(to_arrays(base), list(map(to_arrays, models)), [], parameters)
    assert_close(MemoryMerge(METHOD, parameters)(base, models), expected)
