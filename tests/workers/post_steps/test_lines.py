"""LiNeS behind a merge: factors by depth, the factor it finds itself, and models without blocks."""

from typing import Any

import pytest
import torch
from torch import Tensor

from app.domain.errors import InvalidParameters
from tests.workers.memory import MemoryMerge
from workers.catalog import load_method
from workers.post_steps.lines import apply as lines

NAMES = ["embed", *(f"layers.{index}.w" for index in range(3)), "norm"]
BASE = {name: torch.zeros(2) for name in NAMES}


def _merge(models: list[dict[str, Tensor]], *, method: str = "task_arithmetic", **values: float) -> dict[str, Tensor]:
    parameters = {"scaling_coefficient": 1.0} if method == "task_arithmetic" else {}
    return MemoryMerge(load_method(method), parameters, post_steps=[(lines, values)])(BASE, models)


def _model(value: float) -> dict[str, Tensor]:
    return {name: torch.full((2,), value) for name in NAMES}


def test_factors_rise_from_the_first_block_to_the_last() -> None:
    merged = _merge([_model(1.0)], first=0.2, slope=0.6)
    found = [float(merged[f"layers.{index}.w"][0]) for index in range(3)]
    assert found == pytest.approx([0.2, 0.5, 0.8])


def test_what_lies_outside_of_blocks_has_the_first_factor() -> None:
    merged = _merge([_model(1.0)], first=0.2, slope=0.6)
    assert [float(merged[name][0]) for name in ("embed", "norm")] == pytest.approx([0.2, 0.2])


def test_without_slope_it_is_a_scaled_merge() -> None:
    for tensor in _merge([_model(2.0)], first=0.25, slope=0.0).values():
        assert tensor.tolist() == [0.5, 0.5]


def test_the_first_factor_brings_any_merge_to_the_norm_of_an_average() -> None:
    # the sum has factor ‖sum‖ / ‖sum‖ / 2; the average, half the sum, has 1
    assert float(_merge([_model(1.0), _model(3.0)], slope=0.0)["embed"][0]) == pytest.approx(2.0)
    assert float(_merge([_model(1.0), _model(3.0)], method="average", slope=0.0)["embed"][0]) == pytest.approx(2.0)


@pytest.mark.parametrize("method", ["average", "ties", "iso_c"])
def test_how_the_models_are_cut_does_not_show_in_the_factor(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    base, *models = (
        {f"layers.{index}.w": torch.randn(5, size, generator=generator) for index, size in enumerate((3, 2000))}
        for _ in range(4)
    )
    reports = []
    for size in (1 << 20, 7, 4096, 5000):
        merge = MemoryMerge(load_method(method), post_steps=[(lines, {})], piece_elements=size)
        reports.append(merge.prepare(base, models)[1].report()["lines.depths"])
    assert all(report == reports[0] for report in reports)


def test_the_factor_is_that_of_the_norms() -> None:
    generator = torch.Generator().manual_seed(1)
    base, *models = (
        {f"layers.{index}.w": torch.randn(3, 2000, generator=generator) for index in (0, 1)} for _ in "abc"
    )
    merge = MemoryMerge(load_method("ties"), {"density": 0.3}, post_steps=[(lines, {})])
    found: Any = merge.prepare(base, models)[1].report()["lines.depths"]
    merged = MemoryMerge(load_method("ties"), {"density": 0.3})(base, models)
    of_sum = sum(float((models[0][name] + models[1][name] - 2 * base[name]).double().square().sum()) for name in base)
    of_merged = sum(float((merged[name] - base[name]).double().square().sum()) for name in base)
    assert found["first"] == pytest.approx((of_sum / of_merged) ** 0.5 / 2, rel=1e-6)


def test_a_merge_that_changed_nothing_stays() -> None:
    assert all(not tensor.any() for tensor in _merge([_model(0.0), _model(0.0)]).values())


def test_a_model_without_numbered_blocks_is_refused() -> None:
    merge = MemoryMerge(load_method("average"), post_steps=[(lines, {})])
    with pytest.raises(InvalidParameters, match="no tensor's name numbers the model's blocks"):
        merge({"w": torch.zeros(2)}, [{"w": torch.ones(2)}])
