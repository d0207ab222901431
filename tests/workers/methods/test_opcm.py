"""OPCM: what of the next model is taken out, the mean norm, order, and a reference that scales after every model."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.memory import MemoryMerge
from tests.workers.methods.matrices import A, B, draw_matrices, draw_orthogonal, merge_by_hand, merge_matrices
from tests.workers.models import assert_close, draw_normal, to_arrays
from tests.workers.references.opcm import merge as opcm_by_hand
from workers.catalog import load_method
from workers.methods import opcm
from workers.numerics.matrices import TaskMatrices


def _clean(task: Tensor, merged: Tensor, protected_fraction: float) -> Tensor:
    tasks = TaskMatrices.of(torch.zeros_like(task), task.unsqueeze(0), (1.0,))
    return task.double() - opcm.find_factor(tasks, 0, merged, protected_fraction) @ merged.double()


def test_a_diagonal_merge_takes_out_the_diagonal_and_the_leading_block() -> None:
    # singular values 4, 3, 2, 1 along the axes; 0.7 of their sum are the first two
    merged = torch.diag(torch.tensor([4.0, 3, 2, 1]))
    task = torch.ones(4, 4)
    expected = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]).double()
    torch.testing.assert_close(_clean(task, merged, 0.7), expected)
    torch.testing.assert_close(_clean(task, merged, 0.0), 1.0 - torch.eye(4).double())


def test_a_merge_of_low_rank_takes_nothing_elsewhere() -> None:
    merged = torch.zeros(4, 4)
    merged[0, 0] = 2.0
    task = torch.ones(4, 4)
    expected = task.double()
    expected[0, 0] = 0.0
    torch.testing.assert_close(_clean(task, merged, 0.5), expected)


def test_the_merge_has_the_mean_norm_of_the_task_vectors() -> None:
    merged = merge_matrices("opcm", [A, B])
    torch.testing.assert_close(merged.norm(), (A.norm() + B.norm()) / 2)


def test_orthogonal_tasks_are_added_and_scaled() -> None:
    tasks = draw_orthogonal(0, 2, rank=3)
    total = tasks[0] + tasks[1]
    scale = (tasks[0].norm() + tasks[1].norm()) / 2 / total.norm()
    torch.testing.assert_close(merge_matrices("opcm", tasks), scale * total, rtol=0, atol=2e-6)


def test_a_repeated_model_adds_nothing() -> None:
    torch.testing.assert_close(merge_matrices("opcm", [A, A, A]), A, rtol=0, atol=2e-6)


def test_the_order_of_models_matters() -> None:
    assert not torch.allclose(merge_matrices("opcm", [A, B]), merge_matrices("opcm", [B, A]), atol=1e-3)


def test_models_of_zeros_only_lower_the_mean_norm() -> None:
    merged = merge_matrices("opcm", [torch.zeros(4, 4), A])
    torch.testing.assert_close(merged, A / 2, rtol=0, atol=1e-6)


def test_task_vectors_that_cancel_out_give_the_base() -> None:
    base = {"bias": torch.ones(3)}
    models = [{"bias": torch.full((3,), 2.0)}, {"bias": torch.zeros(3)}]
    assert torch.equal(MemoryMerge(load_method("opcm"))(base, models)["bias"], base["bias"])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), n_models=st.integers(1, 5), reduction=st.sampled_from(["mean", "sum", "base"]))
def test_the_whole_model_is_scaled_as_one(seed: int, n_models: int, reduction: str) -> None:
    base, models = draw_normal(seed, n_models)
    parameters = {"vector_reduce": reduction}
    merged = MemoryMerge(load_method("opcm"), parameters, piece_elements=7)(base, models)
    effective = load_method("opcm").parameters.model_validate(parameters).model_dump()
    arrays = [to_arrays(model) for model in models]
    assert_close(merged, opcm_by_hand(to_arrays(base), arrays, [1.0] * n_models, effective))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_models=st.integers(1, 5),
    protected_fraction=st.sampled_from([0.0, 0.2, 0.5, 0.9]),
    shape=st.sampled_from([(5, 9), (9, 5), (12, 12), (1, 7), (7, 1), (1, 1)]),
    data=st.data(),
)
def test_the_reference_agrees(
    seed: int, n_models: int, protected_fraction: float, shape: tuple[int, int], data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.sampled_from([-1.0, 0.5, 2.0]), min_size=n_models, max_size=n_models))
    parameters = {"protected_fraction": protected_fraction}
    tasks = draw_matrices(seed, n_models, *shape)
    merged = merge_matrices("opcm", tasks, parameters, weights)
    expected = merge_by_hand("opcm", tasks, parameters, weights)
    torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=1e-5)
