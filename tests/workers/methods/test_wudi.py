"""WUDI-Merging: golden closed form, Adam against a gradient summed task by task, and sums that are minima already."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.domain.catalog import load_catalog
from app.domain.errors import InvalidParameters
from tests.workers.methods.matrices import A, B, draw_matrices, merge_by_hand, merge_matrices

CLOSED = {"solver": "closed_form"}
MERGED = torch.tensor(
    [
        [3.325851, 1.29232, 0.546035, -0.779086],
        [0.018451, 3.107001, -0.243875, 2.234781],
        [0.447877, -0.232241, 1.18202, 1.404612],
        [0.722377, 0.167663, 0.626536, 0.151867],
    ]
)


def _loss(merged: Tensor, tasks: list[Tensor]) -> float:
    return sum(
        float(((merged - task).double() @ task.double().T).square().sum() / task.double().square().sum())
        for task in tasks
    )


def test_golden_closed_form() -> None:
    torch.testing.assert_close(merge_matrices("wudi", [A, B], CLOSED), MERGED, rtol=0, atol=2e-6)


def test_the_closed_form_is_a_minimum() -> None:
    tasks = [A, B]
    merged = merge_matrices("wudi", tasks, CLOSED)
    for seed in range(5):
        (step,) = draw_matrices(seed, 1, 4, 4)
        assert _loss(merged, tasks) < _loss(merged + 0.01 * step, tasks)


def test_the_first_step_moves_every_entry_by_the_learning_rate() -> None:
    # Adam's first step is the learning rate times the gradient's sign
    moved = merge_matrices("wudi", [A, B], {"learning_rate": 0.01, "steps": 1}) - (A + B)
    torch.testing.assert_close(moved.abs(), torch.full((4, 4), 0.01), rtol=0, atol=1e-6)


def test_adam_lessens_the_loss_and_ends_where_the_closed_form_is() -> None:
    tasks = [A, B]
    losses = [_loss(merge_matrices("wudi", tasks, {"learning_rate": 0.01, "steps": n}), tasks) for n in (0, 20, 200)]
    assert losses == sorted(losses, reverse=True)
    walked = merge_matrices("wudi", tasks, {"learning_rate": 0.01, "steps": 10_000})
    torch.testing.assert_close(walked, MERGED, rtol=0, atol=1e-2)


def test_no_steps_give_the_sum() -> None:
    assert torch.equal(merge_matrices("wudi", [A, B], {"steps": 0}), A + B)


@pytest.mark.parametrize("solver", ["adam", "closed_form"])
def test_one_model_and_orthogonal_tasks_are_minima_already(solver: str) -> None:
    zeros = torch.zeros(4, 4)
    tasks = [torch.hstack([A, zeros]), torch.hstack([zeros, B])]  # orthogonal to the bit
    for used in (tasks[:1], tasks):
        merged = merge_matrices("wudi", used, {"solver": solver})
        torch.testing.assert_close(merged, sum(used[1:], used[0]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("solver", ["adam", "closed_form"])
def test_a_task_of_zeros_takes_no_part(solver: str) -> None:
    with_zeros = merge_matrices("wudi", [A, torch.zeros(4, 4), B], {"solver": solver})
    torch.testing.assert_close(with_zeros, merge_matrices("wudi", [A, B], {"solver": solver}), rtol=0, atol=1e-6)


def test_the_closed_form_scales_with_the_task_vectors() -> None:
    torch.testing.assert_close(merge_matrices("wudi", [8 * A, 8 * B], CLOSED), 8 * MERGED, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "value"), [("learning_rate", 0.0), ("steps", -1), ("steps", 10_001), ("solver", "sgd")]
)
def test_a_step_of_nothing_and_an_unknown_solver_are_refused(name: str, value: float | str) -> None:
    with pytest.raises(InvalidParameters, match=f"wudi: {value!r} is"):
        load_catalog().check("wudi", {name: value}, has_base_model=True, weights=[1.0])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_models=st.integers(1, 5),
    solver=st.sampled_from(["adam", "closed_form"]),
    shape=st.sampled_from([(5, 9), (9, 5), (6, 6), (1, 7), (7, 1), (1, 1)]),
    data=st.data(),
)
def test_the_reference_agrees(
    seed: int, n_models: int, solver: str, shape: tuple[int, int], data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.sampled_from([-1.0, 0.5, 2.0]), min_size=n_models, max_size=n_models))
    parameters = {"solver": solver, "learning_rate": 1e-4, "steps": 20}
    tasks = draw_matrices(seed, n_models, *shape)
    merged = merge_matrices("wudi", tasks, parameters, weights)
    expected = merge_by_hand("wudi", tasks, parameters, weights)
    torch.testing.assert_close(merged.double(), expected, rtol=1e-4, atol=1e-4)
