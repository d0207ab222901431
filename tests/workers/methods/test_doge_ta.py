"""DOGE: norms, exact counts over all matrices, the first step, shared directions, and a reference by hand."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.memory import MemoryMerge
from tests.workers.methods.matrices import A, B, draw_matrices, merge_by_hand, merge_matrices
from workers.catalog import load_method

PLAIN = {"steps": 0, "density": 1.0}


def test_without_steps_and_trim_it_is_task_arithmetic_of_equal_norms() -> None:
    expected = 0.07 * (A / A.norm() + B / B.norm())
    torch.testing.assert_close(merge_matrices("doge_ta", [A, B], PLAIN), expected, rtol=0, atol=1e-7)


def test_the_scale_of_task_vectors_does_not_matter_without_steps() -> None:
    scaled = merge_matrices("doge_ta", [8 * A, 0.5 * B], PLAIN)
    torch.testing.assert_close(scaled, merge_matrices("doge_ta", [A, B], PLAIN), rtol=0, atol=1e-7)


def test_entries_are_counted_over_all_matrices_and_nothing_else() -> None:
    # 0.3 of 2 · 6 entries are 3: all of "large", none of "small"; "bias" and the embedding stay
    base = {"bias": torch.zeros(9), "large": torch.zeros(1, 6), "small": torch.zeros(1, 6), "embed": torch.zeros(2, 2)}
    model = {
        "bias": torch.full((9,), 100.0),
        "large": torch.tensor([[9.0, 8, 7, 6, 5, 4]]),
        "small": torch.tensor([[3.0, 2, 1, 1, 1, 1]]),
        "embed": torch.full((2, 2), 100.0),
    }
    merged = MemoryMerge(load_method("doge_ta"), {"steps": 0})(base, [model])
    assert merged["large"].count_nonzero(dim=1).tolist() == [3]
    assert not any(merged[name].any() for name in ("bias", "small", "embed"))
    each = MemoryMerge(load_method("doge_ta"), {"steps": 0, "trim_scope": "tensor", "density": 0.5})(base, [model])
    assert each["small"].nonzero()[:, 1].tolist() == [0, 1, 2]


def test_the_first_step_moves_the_change_by_the_learning_rate() -> None:
    tasks = draw_matrices(0, 2, 4, 4)
    shares = 0.07 / tasks[0].norm() + 0.07 / tasks[1].norm()
    moved = merge_matrices("doge_ta", tasks, {**PLAIN, "steps": 1, "learning_rate": 0.01})
    change = (moved - merge_matrices("doge_ta", tasks, PLAIN)) / shares
    torch.testing.assert_close(change.abs(), torch.full((4, 4), 0.01), rtol=1e-4, atol=0)


def test_with_all_directions_shared_nothing_is_learned() -> None:
    still = merge_matrices("doge_ta", [A], {"density": 1.0, "subspace_divisor": 1, "steps": 5})
    torch.testing.assert_close(still, merge_matrices("doge_ta", [A], PLAIN), rtol=0, atol=1e-6)


def test_a_task_of_zeros_is_left_out() -> None:
    merged = merge_matrices("doge_ta", [A, torch.zeros(4, 4)], PLAIN)
    torch.testing.assert_close(merged, 0.07 * A / A.norm(), rtol=0, atol=1e-7)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_models=st.integers(1, 5),
    density=st.sampled_from([0.1, 0.3, 1.0]),
    shape=st.sampled_from([(5, 9), (20, 13), (13, 20), (1, 7), (7, 1), (1, 1)]),
)
def test_the_reference_agrees(seed: int, n_models: int, density: float, shape: tuple[int, int]) -> None:
    parameters = {"density": density, "steps": 30}
    tasks = [0.1 * task for task in draw_matrices(seed, n_models, *shape)]
    merged = merge_matrices("doge_ta", tasks, parameters)
    expected = merge_by_hand("doge_ta", tasks, parameters)
    torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=1e-6)
