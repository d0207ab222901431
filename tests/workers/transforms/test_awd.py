"""AWD before a method: what it changes, what it leaves alone, and that pieces and the order of models do not show."""

from typing import Any

import pytest
import torch

from tests.workers.memory import MemoryMerge
from tests.workers.models import assert_close, draw_normal, to_arrays
from workers.catalog import load_method
from workers.transforms.awd import apply as awd

SCOPES = ["global", "tensor", "row"]


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
    base = {"w": torch.zeros(3, 2)}
    merge = MemoryMerge(load_method("average"), transforms=[(awd, {"scope": "row"})])
    source, program = merge.prepare(base, [{"w": model} for model in models])
    found = program.prepare(source.read("w", 0, 6)).finetuned.view(2, 3, 2)
    assert torch.equal(found[:, :2], models[:, :2])
    cosine = torch.nn.functional.cosine_similarity(found[0, 2], found[1, 2], dim=0)
    assert abs(float(cosine)) < 0.5**0.5 - 0.1
    # one vector is subtracted from all: what the models differ by stays
    torch.testing.assert_close(found[1, 2] - found[0, 2], torch.tensor([0.0, 1.0]))


def test_rows_are_told_of_by_their_quantiles() -> None:
    # 45° between the rows "a", none between the rows "b": half of the rows have something to separate
    base = {"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}
    first = {"a": torch.tensor([[1.0, 0.0], [2.0, 0.0]]), "b": torch.tensor([[1.0, 0.0], [0.0, 0.0]])}
    second = {"a": torch.tensor([[1.0, 1.0], [2.0, 2.0]]), "b": torch.tensor([[0.0, 1.0], [3.0, 0.0]])}
    merge = MemoryMerge(load_method("ties"), transforms=[(awd, {"scope": "row"})])
    _, program = merge.prepare(base, [first, second])
    told: Any = program.report()["awd.redundancy"]
    assert (told["n_rows"], told["n_separable_rows"]) == (4, 4)
    assert told["mean_absolute_cosine_before"] == pytest.approx(0.5**0.5 / 2)
    assert told["mean_absolute_cosine_after"] < told["mean_absolute_cosine_before"] - 0.05
    quantiles = told["coefficient_quantiles"]
    assert list(quantiles) == ["0", "0.05", "0.25", "0.5", "0.75", "0.95", "1"]
    assert len(quantiles["0"]) == 2
    assert quantiles["0"] < quantiles["1"]
    # both rows of "a" are one up to scale, which normalizing takes away; those of "b" have none
    (low, high), zero = (sorted(abs(value) for value in (quantiles["0"][0], quantiles["1"][0])), 0.0)
    assert (low, high > 0) == (zero, True)


def test_of_rows_pieces_do_not_show_in_what_is_told() -> None:
    base, models = draw_normal(3, 3)
    reports = [
        MemoryMerge(load_method("awd_task_arithmetic"), {"scope": "row"}, piece_elements=size)
        .prepare(base, models)[1]
        .report()
        for size in (1, 30, 1 << 20)
    ]
    assert reports[0] == reports[1] == reports[2]
    found: Any = reports[0]["redundancy"]
    assert found["n_rows"] == 1 + 1 + 1 + 4 + 4  # bias, norm, scale; the kernel's 2 · 1 · 2 rows; the weight's


def test_a_merge_set_without_rows_has_nothing_to_tell() -> None:
    _, program = MemoryMerge(load_method("awd_task_arithmetic"), {"scope": "row"}).prepare(
        {"w": torch.zeros(0, 3)}, [{"w": torch.zeros(0, 3)}]
    )
    told: Any = program.report()["redundancy"]
    assert (told["n_rows"], told["mean_absolute_cosine_before"], told["coefficient_quantiles"]) == (0, 0.0, {})
