"""Model Stock: golden ratios, the laws of the angle, and task vectors that have none."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.memory import MemoryMerge
from tests.workers.methods.golden import TASK_VECTORS, merge_example
from tests.workers.models import assert_close, draw_normal, to_arrays
from tests.workers.references.find import load_reference
from workers.catalog import load_method
from workers.methods.model_stock import ModelStockParameters, ratio

METHOD = load_method("model_stock")


def _merge(vectors: list[list[float]], **parameters: Any) -> Tensor:
    models = [{"w": torch.tensor([vector])} for vector in vectors]
    return MemoryMerge(METHOD, parameters)({"w": torch.zeros(1, len(vectors[0]))}, models)["w"][0]


def _gram(vectors: Tensor) -> list[list[float]]:
    gram: list[list[float]] = (vectors.double() @ vectors.double().T).tolist()
    return gram


@pytest.mark.parametrize(("mean", "expected"), [("cosine", -4.245914), ("angle", -4.356677)])
def test_the_golden_ratios(mean: str, expected: float) -> None:
    # pair cosines -.210457, -.445480, -.452481
    parameters = ModelStockParameters.model_validate({"mean": mean, "clamp": False})
    assert ratio(_gram(TASK_VECTORS), parameters) == pytest.approx(expected, abs=1e-6)


def test_the_golden_result_without_clamp() -> None:
    # -4.245914 · mean of (3, 1, -2), which is 2/3
    assert merge_example("model_stock", {"mean": "cosine", "clamp": False})[0] == pytest.approx(-2.83061, abs=1e-5)


def test_opposed_task_vectors_give_the_base_model() -> None:
    assert merge_example("model_stock", {}) == [0.0] * 6


def test_equal_models_come_back() -> None:
    assert _merge([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]).tolist() == pytest.approx([1.0, 2.0], abs=1e-6)


def test_orthogonal_task_vectors_give_the_base_model() -> None:
    torch.testing.assert_close(_merge([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2), rtol=0, atol=1e-7)


def test_two_models_at_sixty_degrees() -> None:
    # cos 60° = 1/2: t = 2 · 1/2 / (1 + 1/2) = 2/3; the mean of (1, 0) and (1/2, √3/2) times 2/3
    merged = _merge([[1.0, 0.0], [0.5, 0.75**0.5]])
    torch.testing.assert_close(merged, torch.tensor([0.5, 0.75**0.5 / 3]), rtol=1e-6, atol=0)


def test_the_ratio_grows_with_the_cosine() -> None:
    ratios = [ratio([[1.0, c], [c, 1.0]], ModelStockParameters()) for c in (-0.5, 0.0, 0.1, 0.5, 0.9, 1.0)]
    assert ratios == sorted(ratios)
    assert ratios[0] == 0.0
    assert ratios[-1] == 1.0


def test_tiny_task_vectors_have_the_same_ratio() -> None:
    # mergekit holds the product of norms at 1e-6 or above, and so loses tensors that moved little
    for size in (1.0, 1e-6, 1e-15):
        gram = [[size, 0.9 * size], [0.9 * size, size]]
        assert ratio(gram, ModelStockParameters()) == pytest.approx(1.8 / 1.9)


def test_exactly_opposite_task_vectors_give_the_base_model_even_without_clamp() -> None:
    assert _merge([[1.0, 2.0], [-1.0, -2.0]], clamp=False).tolist() == [0.0, 0.0]


def test_a_zero_task_vector_counts_as_a_right_angle() -> None:
    # angles 0°, 90°, 90°: mean 60°, t = 3/2 / (1 + 1) = 3/4, times the mean of 3, 3 and 0
    assert float(_merge([[3.0], [3.0], [0.0]])[0]) == pytest.approx(0.75 * 2)


def test_rows_are_solved_one_by_one() -> None:
    base = {"w": torch.zeros(2, 2)}
    models = [{"w": torch.tensor([[1.0, 2.0], [1.0, 0.0]])}, {"w": torch.tensor([[1.0, 2.0], [0.0, 1.0]])}]
    merged = MemoryMerge(METHOD, {"scope": "row"})(base, models)["w"]
    torch.testing.assert_close(merged, torch.tensor([[1.0, 2.0], [0.0, 0.0]]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_a_scalar_whose_models_agree_is_averaged(scope: str) -> None:
    models = [{"w": torch.tensor(1.0)}, {"w": torch.tensor(2.0)}]
    merged = MemoryMerge(METHOD, {"scope": scope})({"w": torch.tensor(0.0)}, models)["w"]
    assert merged.shape == ()
    assert float(merged) == pytest.approx(1.5)


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_models=st.integers(2, 5),
    parameters=st.fixed_dictionaries(
        {
            "mean": st.sampled_from(["angle", "cosine"]),
            "scope": st.sampled_from(["tensor", "row"]),
        }
    ),
)
def test_it_is_what_is_worked_by_hand(seed: int, n_models: int, parameters: dict[str, Any]) -> None:
    base, models = draw_normal(seed, n_models)
    parameters = {**parameters, "clamp": True}
    expected = load_reference("model_stock")(to_arrays(base), list(map(to_arrays, models)), [], parameters)
    assert_close(MemoryMerge(METHOD, parameters)(base, models), expected)
