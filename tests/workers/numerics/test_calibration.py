"""Singular value calibration: golden matrices, identities, and tasks without a response."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.methods.matrices import A, B, draw_matrices
from workers.numerics import calibration
from workers.numerics.matrices import TaskMatrices


def _tasks(tasks: list[Tensor]) -> TaskMatrices:
    return TaskMatrices.of(torch.zeros_like(tasks[0]), torch.stack(tasks), (1.0,) * len(tasks))


def _by_hand(merged: Tensor, tasks: list[Tensor], floor: float) -> Tensor:
    left, values, right = np.linalg.svd(merged.double().numpy(), full_matrices=False)
    for index, column in enumerate(left.T):
        shares = []
        for task in tasks:
            response = column @ task.double().numpy()
            square = float(response @ response)
            shares.append(max(floor, values[index] * float(right[index] @ response) / square) if square else floor)
        values[index] *= len(tasks) / sum(shares)
    return torch.from_numpy(left * values @ right)


def test_golden_matrices() -> None:
    merged = (A + B).double()
    calibrated = calibration.calibrate(merged, _tasks([A, B]), floor=1.0)
    left, values, right = torch.linalg.svd(merged)
    factors = (left.mT @ calibrated @ right.mT).diagonal() / values
    torch.testing.assert_close(factors, torch.tensor([0.541987, 0.76224, 1.0, 1.0]).double(), rtol=0, atol=1e-6)
    row = torch.tensor([3.138195, 0.441347, 0.979513, -0.520897]).double()
    torch.testing.assert_close(calibrated[0], row, rtol=0, atol=1e-6)


@pytest.mark.parametrize("floor", [0.1, 1.0])
def test_a_task_alone_stays_as_it_is(floor: float) -> None:
    torch.testing.assert_close(calibration.calibrate(A.double(), _tasks([A]), floor=floor), A.double())


def test_a_floor_of_one_never_amplifies() -> None:
    merged = sum(draw_matrices(0, 3)).double()  # type: ignore[union-attr]  # a sum of tensors is one
    calibrated = calibration.calibrate(merged, _tasks(draw_matrices(0, 3)), floor=1.0)
    assert bool((torch.linalg.svdvals(calibrated) <= torch.linalg.svdvals(merged) * (1 + 1e-9)).all())


def test_a_merge_of_zeros_stays() -> None:
    assert not calibration.calibrate(torch.zeros(4, 4).double(), _tasks([A, B]), floor=1.0).any()


def test_a_task_of_zeros_counts_with_the_floor() -> None:
    # along each direction of A the shares are 1 and the floor 0.5: every value times 2 / 1.5
    calibrated = calibration.calibrate(A.double(), _tasks([A, 0 * A]), floor=0.5)
    torch.testing.assert_close(calibrated, A.double() * (2 / 1.5))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_models=st.integers(1, 5),
    floor=st.sampled_from([0.1, 1.0]),
    shape=st.sampled_from([(5, 9), (9, 5), (6, 6), (1, 7), (7, 1)]),
)
def test_the_formula_worked_by_hand_agrees(seed: int, n_models: int, floor: float, shape: tuple[int, int]) -> None:
    tasks = draw_matrices(seed, n_models, *shape)
    merged = torch.stack(tasks).sum(0).double()
    calibrated = calibration.calibrate(merged, _tasks(tasks), floor=floor)
    torch.testing.assert_close(calibrated, _by_hand(merged, tasks, floor), rtol=1e-6, atol=1e-6)
