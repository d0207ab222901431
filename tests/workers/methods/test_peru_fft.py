from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.domain.parameter_checks import fill_defaults
from tests.workers.files import FileMerge, write_checkpoint
from tests.workers.memory import MemoryMerge
from tests.workers.methods.golden import TASK_VECTORS, merge_example, patch_example
from tests.workers.models import assert_close, draw_normal, to_arrays
from tests.workers.multitask import merge_tasks, read_tasks
from tests.workers.references.peru_fft import tasks as by_hand
from workers.catalog import load_method

METHOD = load_method("peru_fft")

TIES = {"method": "ties", "parameters": {"density": 0.5}}


def test_the_golden_example_keeps_one_entry_in_six() -> None:
    # methods.md section 2.13: θ* is task arithmetic with 0.3
    assert merge_example("peru_fft", {"density": 1 / 6}) == [0.6, 0.45, 0.225, 0, 0.45, 0.075]
    assert patch_example("peru_fft", {"density": 1 / 6}) == [
        [3, 0.45, 0.225, 0, 0.45, 0.075],
        [0.6, 0.45, 0.225, 0, -1.5, 0.075],
        [-2, 0.45, 0.225, 0, 0.45, 0.075],
    ]


@pytest.mark.parametrize("piece_elements", [1, 2, 6])
def test_the_golden_example_at_one_half(piece_elements: int) -> None:
    assert patch_example("peru_fft", {"density": 0.5}, piece_elements=piece_elements) == [
        [3, -1, 0.225, 0, 2, 0.075],
        [0.6, 2, -0.5, 0, -1.5, 0.075],
        [-2, 0.45, 0.225, 0, 1, 0.625],
    ]


@pytest.mark.parametrize("shared", [{"method": "task_arithmetic"}, TIES, {"method": "average"}])
def test_density_one_gives_the_models_whatever_is_shared(shared: dict[str, Any]) -> None:
    assert patch_example("peru_fft", {"density": 1, "shared": shared}) == TASK_VECTORS.tolist()


def test_any_method_may_be_shared() -> None:
    # methods.md section 2.13: TIES at one half
    assert merge_example("peru_fft", {"shared": TIES}) == [2, 2, 0.75, 0, 1.5, 0]


def test_a_better_merge_leaves_smaller_residuals() -> None:
    base, models = draw_normal(8, 3)

    def distance(density: float) -> float:
        tasks = merge_tasks(MemoryMerge(METHOD, {"density": density}), base, models)
        return sum(
            float((task[name] - model[name]).square().sum())
            for task, model in zip(tasks, models, strict=True)
            for name in base
        )

    distances = [distance(density) for density in (0.01, 0.1, 0.5, 1.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_density_one_gives_every_file_to_the_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    def write(name: str, tensors: dict[str, Tensor]) -> Any:
        cast = {key: tensor.to(dtype) for key, tensor in tensors.items()}
        return write_checkpoint(tmp_path / name, cast | {"ids": torch.arange(5) + len(name)})

    base, models = draw_normal(6, 2)
    models[0]["bias"][0] = -0.0
    written = [write("a" * (index + 1), model) for index, model in enumerate(models)]
    manifest = FileMerge("peru_fft", {"density": 1.0})(write("base", base), written, tmp_path / "out")
    for found, checkpoint in zip(read_tasks(tmp_path / "out", manifest), written, strict=True):
        materialized = write_checkpoint(tmp_path / f"again-{checkpoint.id}", found)
        assert materialized.manifest.weights_digest == checkpoint.manifest.weights_digest


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=1, max_size=5),
    density=st.floats(0.01, 1.0),
    scope=st.sampled_from(["global", "tensor"]),
)
def test_any_parameters_agree_with_the_reference(seed: int, weights: list[float], density: float, scope: str) -> None:
    base, models = draw_normal(seed, len(weights))
    effective = fill_defaults(METHOD.card.parameters, {"density": density, "scope": scope})
    found = merge_tasks(MemoryMerge(METHOD, effective, weights), base, models)
    arrays = [to_arrays(model) for model in models]
    for task, one in zip(found, by_hand(to_arrays(base), arrays, weights, effective), strict=True):
        assert_close(task, one)
