"""Arcee Fusion: importance worked by hand, thresholds, and rows that softmax cannot tell apart."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.memory import MemoryMerge, MemorySource
from tests.workers.models import assert_close, draw_normal, to_arrays
from tests.workers.references.find import load_reference
from workers.catalog import load_method
from workers.numerics.importance import weigh_changes
from workers.statistics.importance import OutlyingImportance

METHOD = load_method("arcee_fusion")


def test_importance_is_distance_times_divergence_of_the_row() -> None:
    # softmax (3/4, 1/4) against (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2); distances ln 3 and 0
    found = weigh_changes(torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2))
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    torch.testing.assert_close(found, torch.tensor([[math.log(3.0) * divergence, 0.0]]), rtol=1e-6, atol=0)


def test_a_row_that_is_shifted_as_a_whole_has_no_importance() -> None:
    assert weigh_changes(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 2.0]])).tolist() == [[0.0, 0.0]]


def test_only_the_outlier_is_taken() -> None:
    base = {"w": torch.zeros(8)}
    model = {"w": torch.tensor([0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.22, 3.0])}
    merged = MemoryMerge(METHOD)(base, [model])["w"]
    # distances at indices 1, 3, 5 of 8: quartiles .12 and .18, median .16 (times one divergence): threshold .25
    assert merged.tolist() == [0.0] * 7 + [3.0]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 1000])
def test_quartiles_are_entries_of_the_sorted_importances(n: int) -> None:
    base, model = torch.randn(2, n, generator=torch.Generator().manual_seed(n))
    ordered = weigh_changes(model.view(1, n), base.view(1, n)).flatten().sort().values.double().tolist()
    first, median, third = (ordered[int(q * (n - 1))] for q in (0.25, 0.5, 0.75))
    found = OutlyingImportance("importance", 1.5).collect(MemorySource({"w": base}, [{"w": model}]))
    assert found["w"].threshold == median + 1.5 * (third - first)


def test_a_scalar_is_the_models() -> None:
    assert float(MemoryMerge(METHOD)({"w": torch.tensor(1.0)}, [{"w": torch.tensor(5.0)}])["w"]) == 5.0


def test_every_entry_is_one_of_both_to_the_bit() -> None:
    base, models = draw_normal(3, 1)
    merged = MemoryMerge(METHOD)(base, models)
    assert all(bool(((merged[name] == base[name]) | (merged[name] == models[0][name])).all()) for name in base)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), ranges=st.floats(0.01, 3))
def test_it_is_what_is_worked_by_hand(seed: int, ranges: float) -> None:
    base, models = draw_normal(seed, 1)
    parameters = {"interquartile_ranges": ranges}
    expected = load_reference("arcee_fusion")(to_arrays(base), list(map(to_arrays, models)), [], parameters)
    assert_close(MemoryMerge(METHOD, parameters, piece_elements=31)(base, models), expected)
