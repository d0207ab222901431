"""TIES as a transform: what it leaves of each model, by hand and against the method."""

import pytest
import torch

from tests.workers.memory import MemoryMerge
from tests.workers.methods.golden import BASE, TASK_VECTORS
from tests.workers.models import assert_close, draw_integers, draw_normal, to_arrays
from workers.catalog import load_method
from workers.transforms import ties

TIES = ties.apply  # the decorated function is the transform


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("vote", ["unweighted", "weighted"])
@pytest.mark.parametrize("size", [5, 1 << 20])
def test_the_sum_behind_it_is_ties_with_sums(scope: str, vote: str, size: int) -> None:
    choices = {"density": 0.5, "trim_scope": scope, "vote": vote}
    base, models = draw_integers(4, 3)
    weights = [1.0, 0.5, 2.0]
    behind = MemoryMerge(
        load_method("task_arithmetic"),
        {"scaling_coefficient": 1.0},
        weights,
        transforms=[(TIES, choices)],
        piece_elements=size,
    )
    whole = MemoryMerge(load_method("ties"), choices | {"reduce": "sum"}, weights)
    assert_close(behind(base, models), to_arrays(whole(base, models)))


def test_what_stays_of_one_model_by_hand() -> None:
    # density 0.5 keeps of each row its 3 largest: [3 −1 · · 2 ·], [1 2 · · −1.5 ·], [−2 · .75 · 1 ·];
    # sums 2, 1, .75, –, 1.5, – elect +: −1, −1.5 and −2 go
    merge = MemoryMerge(
        load_method("adamerging"),
        {"coefficients": {"*": [1.0, 10.0, 100.0]}},
        transforms=[(TIES, {"density": 0.5})],
    )
    merged = merge({"w": BASE}, [{"w": vector} for vector in TASK_VECTORS])
    assert merged["w"].tolist() == [3 + 10, 20, 75, 0, 2 + 100, 0]


def test_density_one_and_one_model_changes_nothing() -> None:
    base, models = draw_normal(2, 1)
    merge = MemoryMerge(load_method("average"), transforms=[(TIES, {"density": 1.0})])
    assert all(torch.equal(tensor, models[0][name]) for name, tensor in merge(base, models).items())
