import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.parameter_checks import fill_defaults
from tests.workers.memory import MemoryMerge
from tests.workers.methods.golden import TASK_VECTORS, merge_example, patch_example
from tests.workers.models import assert_close, draw_normal, to_arrays
from tests.workers.multitask import merge_tasks
from tests.workers.references.emr import tasks as by_hand
from workers.catalog import load_method

METHOD = load_method("emr")


@pytest.mark.parametrize("piece_elements", [1, 4, 6])
def test_the_golden_example(piece_elements: int) -> None:
    # methods.md section 2.13: γ = + + + 0 + +; masks 101010, 110000, 011011; scales 6.75 / 5.75, 5.625 / 5, 1
    assert merge_example("emr", {}) == [3, 2, 0.75, 0, 2, 0.625]
    assert patch_example("emr", {}, piece_elements=piece_elements) == [
        [3.521739, 0, 0.880435, 0, 2.347826, 0],
        [3.375, 2.25, 0, 0, 0, 0],
        [0, 2, 0.75, 0, 2, 0.625],
    ]


def test_without_rescaling_a_task_is_the_unified_vector_under_its_mask() -> None:
    assert patch_example("emr", {"rescale": "none"})[0] == [3, 0, 0.75, 0, 2, 0]


def test_the_mean_of_a_task_vectors_magnitudes_is_restored() -> None:
    for task, vector in zip(patch_example("emr", {}), TASK_VECTORS, strict=True):
        assert sum(abs(value) for value in task) == pytest.approx(float(vector.abs().sum()), rel=1e-5)


def test_tensor_means_let_small_tensors_count_as_much_as_large_ones() -> None:
    # big: τ = (2, 2, −2, −2) and (3, 3, 3, 3); small: 4 and 1. Unified: 3, 3, 3, 3 and 4; model 0 keeps 3, 3 and 4.
    # global: (8 + 4) / (6 + 4); means: (2 + 4) / (1.5 + 4)
    base = {"big": torch.zeros(4), "small": torch.zeros(1)}
    models = [
        {"big": torch.tensor([2.0, 2.0, -2.0, -2.0]), "small": torch.tensor([4.0])},
        {"big": torch.full((4,), 3.0), "small": torch.tensor([1.0])},
    ]
    for rescale, scale in (("global", 1.2), ("tensor_mean", 6 / 5.5)):
        task = merge_tasks(MemoryMerge(METHOD, {"rescale": rescale}), base, models)[0]
        assert_close(task, to_arrays({"big": scale * torch.tensor([3.0, 3, 0, 0]), "small": torch.tensor([4 * scale])}))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), rescale=st.sampled_from(["global", "tensor_mean", "none"]))
def test_one_model_comes_back_to_the_bit(seed: int, rescale: str) -> None:
    base, models = draw_normal(seed, 1)
    (task,) = merge_tasks(MemoryMerge(METHOD, {"rescale": rescale}), base, models)
    assert all(torch.equal(task[name], models[0][name]) for name in base)


def test_each_unified_entry_is_some_models_own() -> None:
    base, models = draw_normal(2, 4)
    merged = MemoryMerge(METHOD)(base, models)
    for name, tensor in merged.items():
        known = torch.stack([base[name], *(model[name] for model in models)])
        assert (known == tensor).any(0).all()


def test_an_entry_is_a_models_own_also_where_its_distance_is_rounded() -> None:
    # 1e-20 - 1 is -1 in float32 and float64
    base = {"w": torch.tensor([1.0, -1e-30])}
    models = [{"w": torch.tensor([1e-20, 3e8])}, {"w": torch.tensor([0.5, 1e-38])}]
    assert torch.equal(MemoryMerge(METHOD)(base, models)["w"], torch.tensor([1e-20, 3e8]))


def test_a_task_vector_that_agrees_nowhere_gives_the_base() -> None:
    base = {"w": torch.zeros(2)}
    models = [{"w": torch.tensor([-1.0, -1.0])}, {"w": torch.tensor([3.0, 3.0])}]
    assert merge_tasks(MemoryMerge(METHOD), base, models)[0]["w"].tolist() == [0.0, 0.0]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_models=st.integers(1, 5),
    rescale=st.sampled_from(["global", "tensor_mean", "none"]),
)
def test_any_parameters_agree_with_the_reference(seed: int, n_models: int, rescale: str) -> None:
    base, models = draw_normal(seed, n_models)
    effective = fill_defaults(METHOD.card.parameters, {"rescale": rescale})
    found = merge_tasks(MemoryMerge(METHOD, effective), base, models)
    arrays = [to_arrays(model) for model in models]
    for task, one in zip(found, by_hand(to_arrays(base), arrays, [1.0] * n_models, effective), strict=True):
        assert_close(task, one)
