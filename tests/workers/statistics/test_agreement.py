import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.memory import MemorySource
from tests.workers.models import draw_normal
from workers.statistics.agreement import RestoringFactors


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    piece_elements=st.integers(1, 40),
    scope=st.sampled_from(["global", "tensor_mean"]),
)
def test_no_cut_into_pieces_shows(seed: int, piece_elements: int, scope: str) -> None:
    base, models = draw_normal(seed, 3)
    request = RestoringFactors("scales", scope)  # type: ignore[arg-type]  # a literal by the strategy
    whole = request.collect(MemorySource(base, models))
    assert request.collect(MemorySource(base, models, piece_elements=piece_elements)) == whole


def test_one_model_loses_nothing() -> None:
    base, models = draw_normal(1, 1)
    assert RestoringFactors("scales", "global").collect(MemorySource(base, models)) == (1.0,)


def test_a_model_that_agrees_nowhere_and_one_that_did_not_move_have_factor_zero() -> None:
    base = {"w": torch.zeros(2)}
    models = [{"w": torch.tensor([3.0, 3.0])}, {"w": torch.tensor([-1.0, -1.0])}, {"w": torch.zeros(2)}]
    assert RestoringFactors("scales", "global").collect(MemorySource(base, models)) == (1.0, 0.0, 0.0)


def test_without_a_base_there_are_no_task_vectors() -> None:
    with pytest.raises(ValueError, match="differences from a base model"):
        RestoringFactors("scales", "global").collect(MemorySource(None, [{"w": torch.ones(2)}]))
