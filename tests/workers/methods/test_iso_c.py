"""Iso-C: golden matrices, a flat spectrum whose sum is kept, a reference by SVD, and sums of low rank."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.methods.matrices import A, B, draw_matrices, merge_by_hand, merge_matrices

MERGED = torch.tensor(
    [
        [3.178842, 0.788973, 0.309901, -0.771292],
        [-0.192706, 2.765743, -0.325148, 1.904272],
        [0.881234, -1.551676, 1.290204, 2.563112],
        [-0.706894, 0.859612, 3.09064, -0.792309],
    ]
)


def test_golden_matrices() -> None:
    torch.testing.assert_close(merge_matrices("iso_c", [A, B]), MERGED, rtol=0, atol=2e-6)


def test_all_singular_values_are_the_mean_of_the_sums() -> None:
    values = torch.linalg.svdvals(merge_matrices("iso_c", [A, B]))
    torch.testing.assert_close(values, torch.full((4,), 3.379119), rtol=0, atol=2e-6)


def test_a_sum_of_low_rank_keeps_its_rank_and_the_sum_of_its_singular_values() -> None:
    tasks = draw_matrices(0, 2, rank=2)
    values = torch.linalg.svdvals(merge_matrices("iso_c", tasks))
    total = torch.linalg.svdvals(tasks[0] + tasks[1]).sum()
    torch.testing.assert_close(values[:4], (total / 4).expand(4), rtol=1e-5, atol=0)
    assert float(values[4]) < 1e-5


def test_without_a_tolerance_noise_gets_the_strength_of_everything_else() -> None:
    tasks = draw_matrices(0, 2, rank=2)
    values = torch.linalg.svdvals(merge_matrices("iso_c", tasks, {"rank_tolerance": 0.0}))
    total = torch.linalg.svdvals(tasks[0] + tasks[1]).sum()
    torch.testing.assert_close(values, (total / 12).expand(12), rtol=1e-5, atol=0)


def test_task_vectors_that_cancel_out_give_the_base() -> None:
    assert torch.equal(merge_matrices("iso_c", [A, -A]), torch.zeros(4, 4))


def test_a_badly_conditioned_sum_is_as_exact_as_a_float64_svd() -> None:
    left, right = torch.linalg.qr(torch.stack(draw_matrices(1, 2, 12, 12)).double()).Q
    task = (left * torch.logspace(0, -5.5, 12, dtype=torch.float64) @ right).float()  # condition 3e5
    merged = merge_matrices("iso_c", [task])
    torch.testing.assert_close(merged.double(), merge_by_hand("iso_c", [task]), rtol=0, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_models=st.integers(1, 5),
    shape=st.sampled_from([(5, 9), (9, 5), (6, 6), (1, 7), (7, 1), (1, 1)]),
    data=st.data(),
)
def test_the_reference_agrees(seed: int, n_models: int, shape: tuple[int, int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.sampled_from([-1.0, 0.5, 2.0]), min_size=n_models, max_size=n_models))
    tasks = draw_matrices(seed, n_models, *shape)
    merged = merge_matrices("iso_c", tasks, weights=weights)
    expected = merge_by_hand("iso_c", tasks, weights=weights)
    torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=1e-5)
