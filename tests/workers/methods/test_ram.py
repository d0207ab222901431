"""RAM: what one model changes is kept whole, what several change is averaged; RAM+ boosts the former."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.memory import MemoryMerge
from tests.workers.models import assert_close, draw_normal, to_arrays
from tests.workers.references.find import load_reference
from workers.catalog import load_method
from workers.methods.ram import RamParameters, boost
from workers.statistics.overlaps import Overlap

METHOD = load_method("ram")
# the first model changes entries 1-4, the second 1, 2 and 5
VECTORS = [[2.0, 4.0, 1.0, 1.0, 0.0, 0.0], [4.0, 0.5, 0.0, 0.0, 3.0, 0.0]]


def _merge(**parameters: Any) -> list[float]:
    models = [{"w": torch.tensor(vector)} for vector in VECTORS]
    merged: list[float] = MemoryMerge(METHOD, parameters)({"w": torch.zeros(6)}, models)["w"].tolist()
    return merged


def test_unique_changes_are_kept_and_shared_ones_averaged() -> None:
    assert _merge() == [3.0, 2.25, 1.0, 1.0, 3.0, 0.0]


def test_what_does_not_exceed_the_threshold_is_no_change() -> None:
    assert _merge(change_threshold=1.0) == [3.0, 4.0, 0.0, 0.0, 3.0, 0.0]


def test_unique_changes_grow_with_the_overlap_ratio() -> None:
    # ratios 2/2 and 2/1: 1 + 0.1 · 1 and 1 + 0.1 · 2
    expected = [3.0, 2.25, 1.1, 1.1, 3.6, 0.0]
    assert _merge(unique_boost=0.1, max_overlap_ratio=9.0) == pytest.approx(expected)


def test_the_overlap_ratio_counts_to_its_limit() -> None:
    parameters = RamParameters(unique_boost=0.1)
    assert boost(Overlap(n_shared=1, n_unique=10), parameters) == pytest.approx(1.01)
    assert boost(Overlap(n_shared=9, n_unique=10), parameters) == pytest.approx(1.02)
    assert boost(Overlap(n_shared=9, n_unique=0), parameters) == pytest.approx(1.02)


def test_a_scalar_is_averaged_over_those_that_changed_it() -> None:
    models = [{"w": torch.tensor(value)} for value in (2.0, 0.0, 4.0)]
    assert float(MemoryMerge(METHOD)({"w": torch.tensor(0.0)}, models)["w"]) == 3.0


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_models=st.integers(1, 5),
    change_threshold=st.floats(0, 0.3),
    unique_boost=st.sampled_from([0.0, 0.1, 1.0]),
    max_overlap_ratio=st.floats(0, 2),
)
def test_it_is_what_is_worked_by_hand(seed: int, n_models: int, **parameters: float) -> None:
    base, models = draw_normal(seed, n_models)
    expected = load_reference("ram")(to_arrays(base), list(map(to_arrays, models)), [], parameters)
    assert_close(MemoryMerge(METHOD, parameters, piece_elements=17)(base, models), expected)
