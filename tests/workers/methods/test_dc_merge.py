"""DC-Merge: one task, counts of coordinates, orthogonal tasks, smoothing, and a reference by SVD."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.methods.matrices import A, B, draw_matrices, draw_orthogonal, merge_by_hand, merge_matrices
from workers.methods import dc_merge


def test_one_model_keeps_its_strongest_direction() -> None:
    left, values, right = torch.linalg.svd(A)
    strongest = values[0] * torch.outer(left[:, 0], right[0])  # 0.1 % of 16 coordinates: one
    torch.testing.assert_close(merge_matrices("dc_merge", [A]), strongest, rtol=0, atol=2e-6)


def test_orthogonal_tasks_are_added() -> None:
    tasks = draw_orthogonal(0, 3, rank=4)  # four coordinates of 12 · 12 are not zero
    merged = merge_matrices("dc_merge", tasks, {"density": 4 / 144})
    torch.testing.assert_close(merged, sum(tasks[1:], tasks[0]), rtol=0, atol=5e-6)


def test_two_identical_tasks_give_half_of_their_first_directions() -> None:
    # both bases are [u, u] / √2, each task has s / 2 in all four blocks, and two of them mix tasks
    left, values, right = torch.linalg.svd(A)
    truncated = left[:, :2] * values[:2] @ right[:2]
    torch.testing.assert_close(merge_matrices("dc_merge", [A, A], {"density": 1.0}), truncated / 2, rtol=0, atol=2e-6)


def test_opposite_tasks_cancel_out() -> None:
    torch.testing.assert_close(merge_matrices("dc_merge", [A, -A]), torch.zeros(4, 4), rtol=0, atol=1e-6)


def test_smoothing_keeps_the_sum_of_singular_values() -> None:
    values = torch.tensor([8.0, 4.0, 1.0, 1.0])
    assert dc_merge.smooth(values, "none", 5.0).tolist() == [8.0, 4.0, 1.0, 1.0]
    assert dc_merge.smooth(values, "average", 5.0).tolist() == [3.5, 3.5, 3.5, 3.5]
    # falling from 5 to 1: 5, 11/3, 7/3, 1 sum up to 12; times 14 / 12
    expected = torch.tensor([5.0, 11 / 3, 7 / 3, 1.0]) * 14 / 12
    torch.testing.assert_close(dc_merge.smooth(values, "linear", 5.0), expected)


def test_linear_smoothing_never_steepens() -> None:
    values = torch.tensor([3.0, 2.0, 2.0])  # 3 / 2 is less than the ratio
    smoothed = dc_merge.smooth(values, "linear", 5.0)
    assert float(smoothed[0] / smoothed[-1]) == 1.5


def test_golden_matrices_agree_with_the_reference() -> None:
    merged = merge_matrices("dc_merge", [A, B])
    torch.testing.assert_close(merged.double(), merge_by_hand("dc_merge", [A, B]), rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_models=st.integers(1, 5),
    parameters=st.fixed_dictionaries(
        {
            "density": st.sampled_from([0.001, 0.1, 0.5, 1.0]),
            "smoothing": st.sampled_from(["none", "linear", "average"]),
        }
    ),
    shape=st.sampled_from([(5, 9), (9, 5), (12, 12), (1, 7), (7, 1), (1, 1)]),
    data=st.data(),
)
def test_the_reference_agrees(
    seed: int, n_models: int, parameters: dict[str, float | str], shape: tuple[int, int], data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.sampled_from([-1.0, 0.5, 2.0]), min_size=n_models, max_size=n_models))
    tasks = draw_matrices(seed, n_models, *shape)
    merged = merge_matrices("dc_merge", tasks, parameters, weights)
    expected = merge_by_hand("dc_merge", tasks, parameters, weights)
    torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("smoothing", ["linear", "average"])
def test_one_row_has_nothing_to_smooth(smoothing: str) -> None:
    tasks = draw_matrices(3, 2, 1, 6)
    smoothed = merge_matrices("dc_merge", tasks, {"smoothing": smoothing})
    torch.testing.assert_close(smoothed, merge_matrices("dc_merge", tasks), rtol=1e-6, atol=1e-6)
