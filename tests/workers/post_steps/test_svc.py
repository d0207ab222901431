"""Singular value calibration behind a merge: golden numbers, and what it leaves alone."""

import pytest
import torch
from torch import Tensor

from tests.workers.memory import MemoryMerge
from workers.catalog import load_method
from workers.post_steps.svc import apply as svc

A = torch.tensor([[4.0, 1, 0, 0], [0, 3, 1, 0], [0, 0, 2, 1], [1, 0, 0, 1]])
B = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 3], [2, 0, 0, 1], [0, 1, 1, 0]])


def _sum(*models: Tensor, name: str = "w", **floor: float) -> Tensor:
    merge = MemoryMerge(load_method("task_arithmetic"), {"scaling_coefficient": 1.0}, post_steps=[(svc, floor)])
    return merge({name: torch.zeros(models[0].shape)}, [{name: model} for model in models])[name]


def test_golden_calibration_of_a_sum() -> None:
    assert _sum(A, B)[0].tolist() == pytest.approx([3.138195, 0.441347, 0.979513, -0.520897], abs=1e-5)


def test_one_task_comes_back() -> None:
    torch.testing.assert_close(_sum(A), A)


def test_a_floor_of_one_never_amplifies() -> None:
    before, after = torch.linalg.svdvals(A + B), torch.linalg.svdvals(_sum(A, B))
    assert (after <= before + 1e-5).all()


def test_a_low_floor_amplifies_what_the_merge_has_lost() -> None:
    assert torch.linalg.matrix_norm(_sum(A, -0.9 * A, floor=0.1)) > torch.linalg.matrix_norm(_sum(A, -0.9 * A))


@pytest.mark.parametrize("name", ["embed_tokens.weight", "lm_head.weight", "classifier.weight"])
def test_embeddings_and_heads_are_left_alone(name: str) -> None:
    assert torch.equal(_sum(A, B, name=name), A + B)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3, 2), (0, 4)])
def test_what_is_no_matrix_is_left_alone(shape: tuple[int, ...]) -> None:
    first, second = torch.rand(shape), torch.rand(shape)
    assert torch.equal(_sum(first, second), first + second)


def test_a_merge_that_changed_nothing_stays() -> None:
    assert torch.equal(_sum(torch.zeros(3, 4), torch.zeros(3, 4)), torch.zeros(3, 4))


def test_a_merge_that_is_not_finite_is_not_decomposed() -> None:
    large = torch.full((4, 4), 3.0e38)
    assert _sum(large, large).isinf().all()  # which the engine refuses by the tensor's name
