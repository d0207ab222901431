"""Iso-CTS: how directions are shared out, when it is Iso-C, a reference by SVD, and tasks without own parts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.methods.matrices import A, B, draw_matrices, draw_orthogonal, merge_by_hand, merge_matrices
from workers.methods import iso_cts


@pytest.mark.parametrize(
    ("smaller_side", "n_models", "common_fraction", "expected"),
    [
        (10, 2, 0.8, (8, 1)),
        (16, 3, 0.8, (13, 1)),  # 12 common, 4 / 3 rounds to 1
        (4, 2, 0.8, (4, 0)),  # 1 / 2 rounds to the even 0
        (12, 3, 0.0, (0, 4)),
        (12, 3, 1.0, (12, 0)),
        (5, 3, 0.1, (2, 1)),  # 5 / 3 rounds to 2, but 6 directions are more than there are
    ],
)
def test_directions_are_shared_out(
    smaller_side: int, n_models: int, common_fraction: float, expected: tuple[int, int]
) -> None:
    assert iso_cts.count_directions(smaller_side, n_models, common_fraction) == expected


@pytest.mark.parametrize("parameters", [{}, {"common_fraction": 1.0}])
def test_without_directions_of_the_tasks_own_it_is_iso_c(parameters: dict[str, float]) -> None:
    merged = merge_matrices("iso_cts", [A, B], parameters)  # 4 rows are too few for the default fraction
    torch.testing.assert_close(merged, merge_matrices("iso_c", [A, B]), rtol=0, atol=1e-6)


def test_one_model_gives_what_iso_c_gives() -> None:
    tasks = draw_matrices(0, 1)
    merged = merge_matrices("iso_cts", tasks, {"common_fraction": 0.5})
    torch.testing.assert_close(merged, merge_matrices("iso_c", tasks), rtol=0, atol=1e-5)


def test_all_singular_values_are_equal() -> None:
    values = torch.linalg.svdvals(merge_matrices("iso_cts", draw_matrices(1, 2)))
    torch.testing.assert_close(values, values.mean().expand(12), rtol=1e-5, atol=0)


def test_without_common_directions_orthogonal_tasks_keep_theirs() -> None:
    tasks = draw_orthogonal(2, 3, rank=4)
    merged = merge_matrices("iso_cts", tasks, {"common_fraction": 0.0})
    torch.testing.assert_close(merged, merge_matrices("iso_c", tasks), rtol=0, atol=1e-5)  # the sum has the same ones


def test_identical_tasks_have_nothing_beside_each_other() -> None:
    (task,) = draw_matrices(3, 1)
    merged = merge_matrices("iso_cts", [task, task], {"common_fraction": 0.5})
    torch.testing.assert_close(
        merged.double(), merge_by_hand("iso_cts", [task, task], {"common_fraction": 0.5}), rtol=0, atol=1e-5
    )


def test_task_vectors_that_cancel_out_keep_their_own_directions() -> None:
    tasks = draw_matrices(4, 1)
    merged = merge_matrices("iso_cts", [tasks[0], -tasks[0]], {"common_fraction": 0.5})
    assert bool(merged.isfinite().all())


def test_tasks_of_low_rank_are_not_filled_up_with_noise() -> None:
    tasks = draw_matrices(5, 2, rank=2)
    merged = merge_matrices("iso_cts", tasks)
    assert int(torch.linalg.matrix_rank(merged, rtol=1e-4)) == 4


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_models=st.integers(1, 5),
    common_fraction=st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]),
    shape=st.sampled_from([(11, 15), (15, 11), (12, 12), (1, 7), (7, 1), (1, 1)]),
    data=st.data(),
)
def test_the_reference_agrees(
    seed: int, n_models: int, common_fraction: float, shape: tuple[int, int], data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.sampled_from([-1.0, 0.5, 2.0]), min_size=n_models, max_size=n_models))
    parameters = {"common_fraction": common_fraction}
    tasks = draw_matrices(seed, n_models, *shape)
    merged = merge_matrices("iso_cts", tasks, parameters, weights)
    expected = merge_by_hand("iso_cts", tasks, parameters, weights)
    torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=1e-5)
