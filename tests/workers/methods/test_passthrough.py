"""`passthrough` without slices: the first model, times a factor. Its slices: pipelines/test_passthrough.py."""

import torch

from tests.workers.memory import MemoryMerge
from tests.workers.models import draw_normal
from workers.methods.passthrough import merge as method


def test_the_first_model_comes_back_to_the_bit() -> None:
    base, models = draw_normal(3, 3)
    merged = MemoryMerge(method)(base, models)
    assert all(torch.equal(merged[name], models[0][name]) for name in base)


def test_the_last_factor_that_matches_holds() -> None:
    base, models = draw_normal(3, 1)
    scaling = [{"match": "*", "factor": 2.0}, {"match": "b*", "factor": 0.5}]
    merged = MemoryMerge(method, {"scaling": scaling})(base, models)
    for name in base:
        assert torch.equal(merged[name], models[0][name] * (0.5 if name.startswith("b") else 2.0))
