"""CABS: worked examples, masks that do not overlap, order, short blocks, a reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.memory import MemoryMerge
from tests.workers.methods.golden import TASK_VECTORS, merge_example
from tests.workers.models import assert_close, draw_integers, to_arrays
from tests.workers.references.cabs import merge as by_hand
from workers.catalog import load_method

TWO_OF_SIX = {"density": 1 / 3, "block_size": 6}


def test_two_of_every_six() -> None:
    # τ1 takes 3 and 2; of the others τ2 takes 2 and, in front of .5, -.5; what is left of τ3 is -.5 and .625
    assert merge_example("cabs", TWO_OF_SIX) == [3.0, 2.0, -0.5, -0.5, 2.0, 0.625]


def test_one_of_every_three() -> None:
    assert merge_example("cabs", {"density": 1 / 3, "block_size": 3}) == [3.0, 2.0, 0.75, 0.5, 2.0, 0.625]


def test_order_decides_who_takes_what() -> None:
    # τ3 takes -2 and 1; τ2 2 and, in front of .5, -.5; what is left of τ1 is -.25
    merged = merge_example("cabs", TWO_OF_SIX, task_vectors=TASK_VECTORS[[2, 1, 0]])
    assert merged == [-2.0, 2.0, -0.5, 0.0, 1.0, -0.25]


def test_every_block_of_every_model_keeps_its_share_and_no_entry_twice() -> None:
    generator = torch.Generator().manual_seed(3)
    models = [{"w": torch.randn(8, 96, generator=generator)} for _ in range(4)]
    merged = MemoryMerge(load_method("cabs"), {"block_size": 64})({"w": torch.zeros(8, 96)}, models)["w"]
    sources = torch.stack([merged == model["w"] for model in models]).view(4, -1, 64)
    assert set(sources.sum(0).flatten().tolist()) == {1}
    assert set(sources.sum(2).flatten().tolist()) == {16}


def test_a_model_without_weight_takes_nothing() -> None:
    assert merge_example("cabs", TWO_OF_SIX, [0.0, 1.0, 1.0])[0] == -2.0


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 1, 1, 1)])
def test_a_short_block_keeps_its_share_rounded_up(shape: tuple[int, ...]) -> None:
    model = {"w": torch.full(shape, 2.0)}
    merged = MemoryMerge(load_method("cabs"))({"w": torch.zeros(shape)}, [model])["w"]
    assert int(merged.count_nonzero()) == (2 if len(shape) == 4 else 1)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, -1.0, 0.0]), min_size=1, max_size=5),
    density=st.sampled_from([0.05, 0.25, 0.5, 1.0]),
    block_size=st.sampled_from([1, 7, 16, 256]),
)
def test_agrees_with_the_algorithm_worked_entry_by_entry(
    seed: int, weights: list[float], density: float, block_size: int
) -> None:
    parameters = {"density": density, "block_size": block_size, "scaling_coefficient": 0.5}
    base, models = draw_integers(seed, len(weights))
    merged = MemoryMerge(load_method("cabs"), parameters, weights)(base, models)
    assert_close(merged, by_hand(to_arrays(base), [to_arrays(model) for model in models], weights, parameters))
