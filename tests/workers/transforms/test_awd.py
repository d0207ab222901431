"""AWD before a method: what it changes, what it leaves alone, and that pieces and the order of models do not show."""

import pytest
import torch
from torch import Tensor

from tests.workers.memory import MemoryMerge
from tests.workers.models import assert_close, draw_normal, to_arrays
from workers.catalog import load_method
from workers.contract import MergeContext
from workers.transforms.awd import AwdParameters
from workers.transforms.awd import apply as awd

SCOPES = ["global", "tensor", "row"]


def _by_rows(finetuned: Tensor, **values: float) -> Tensor:
    """Return the models that a method sees, each row having a redundant vector of its own; the base is zero."""
    context = MergeContext(tensor="w", shape=finetuned[0].shape, offset=0, position=0, weights=(1.0,) * len(finetuned))
    parameters = AwdParameters.model_validate({"scope": "row", **values})
    changed: Tensor = awd.apply(torch.zeros_like(finetuned[0]), finetuned, parameters, context)
    return changed


@pytest.mark.parametrize("scope", SCOPES)
def test_before_task_arithmetic_it_is_the_method(scope: str) -> None:
    base, models = draw_normal(3, 3)
    step = [(awd, {"scope": scope})]
    transformed = MemoryMerge(load_method("task_arithmetic"), {"scaling_coefficient": 0.3}, transforms=step)(
        base, models
    )
    whole = MemoryMerge(load_method("awd_task_arithmetic"), {"scope": scope})(base, models)
    assert_close(transformed, to_arrays(whole), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_pieces_do_not_show(size: int) -> None:
    base, models = draw_normal(3, 3)
    found = MemoryMerge(load_method("ties"), transforms=[(awd, {})], piece_elements=size)(base, models)
    assert_close(found, to_arrays(MemoryMerge(load_method("ties"), transforms=[(awd, {})])(base, models)))


@pytest.mark.parametrize("scope", SCOPES)
def test_the_order_of_models_does_not_show(scope: str) -> None:
    base, models = draw_normal(5, 3)
    merge = MemoryMerge(load_method("ties"), transforms=[(awd, {"scope": scope})])
    assert_close(merge(base, models), to_arrays(merge(base, models[::-1])), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("n_models", [1, 2])
def test_without_steps_nothing_changes_to_the_bit(scope: str, n_models: int) -> None:
    base, models = draw_normal(7, n_models)
    plain = MemoryMerge(load_method("ties"))(base, models)
    found = MemoryMerge(load_method("ties"), transforms=[(awd, {"scope": scope, "steps": 0})])(base, models)
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())


def test_one_model_has_nothing_redundant() -> None:
    base, models = draw_normal(7, 1)
    found = MemoryMerge(load_method("ties"), transforms=[(awd, {})])(base, models)
    assert all(
        torch.equal(found[name], tensor) for name, tensor in MemoryMerge(load_method("ties"))(base, models).items()
    )


def test_rows_that_are_orthogonal_or_zero_stay_and_others_turn_towards_it() -> None:
    # of two models, row 0 is orthogonal, row 1 zero, row 2 at 45°
    models = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]]])
    found = _by_rows(models)
    assert torch.equal(found[:, :2], models[:, :2])
    cosine = torch.nn.functional.cosine_similarity(found[0, 2], found[1, 2], dim=0)
    assert abs(float(cosine)) < 0.5**0.5 - 0.1
    # one vector is subtracted from all: what the models differ by stays
    torch.testing.assert_close(found[1, 2] - found[0, 2], torch.tensor([0.0, 1.0]))
