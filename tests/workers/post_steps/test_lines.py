"""LiNeS behind a merge: factors by depth, the factor it finds itself, and models without blocks."""

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


def test_a_merge_that_changed_nothing_stays() -> None:
    assert all(not tensor.any() for tensor in _merge([_model(0.0), _model(0.0)]).values())


def test_a_model_without_numbered_blocks_is_refused() -> None:
    merge = MemoryMerge(load_method("average"), post_steps=[(lines, {})])
    with pytest.raises(InvalidParameters, match="no tensor's name numbers the model's blocks"):
        merge({"w": torch.zeros(2)}, [{"w": torch.ones(2)}])
