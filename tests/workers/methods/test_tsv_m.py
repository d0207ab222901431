"""TSV-Merge: golden matrices, a reference by SVD, orthogonal tasks, and directions that depend on each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.memory import MemoryMerge
from tests.workers.methods.matrices import A, B, draw_matrices, draw_orthogonal, merge_by_hand, merge_matrices
from tests.workers.models import draw_normal
from workers.catalog import load_method

METHOD = load_method("tsv_m")
MERGED = torch.tensor(
    [
        [3.49016, 1.50746, 0.144112, -0.999335],
        [0.48115, 2.651036, -0.198104, 1.970855],
        [-0.984059, -0.177693, 2.798141, 0.820963],
        [1.25138, -1.793328, -0.210762, 2.440459],
    ]
)


def test_golden_matrices() -> None:
    torch.testing.assert_close(merge_matrices("tsv_m", [A, B]), MERGED, rtol=0, atol=2e-6)


def test_a_matrix_and_its_transpose_merge_alike() -> None:
    torch.testing.assert_close(merge_matrices("tsv_m", [A.T, B.T]), MERGED.T, rtol=0, atol=2e-6)


def test_the_scaling_coefficient_scales_the_sum() -> None:
    halved = merge_matrices("tsv_m", [A, B], {"scaling_coefficient": 0.5})
    torch.testing.assert_close(halved, 0.5 * MERGED, rtol=0, atol=2e-6)


def test_a_weight_multiplies_the_task_vector_first() -> None:
    weighted = merge_matrices("tsv_m", [A, B], weights=[2.0, -0.5])
    torch.testing.assert_close(weighted, merge_matrices("tsv_m", [2 * A, -0.5 * B]), rtol=1e-6, atol=1e-6)


def test_orthogonal_tasks_are_added() -> None:
    tasks = draw_orthogonal(0, 3, rank=4)
    torch.testing.assert_close(merge_matrices("tsv_m", tasks), sum(tasks[1:], tasks[0]), rtol=0, atol=2e-6)


def test_more_models_than_the_smaller_side_keep_one_direction_each() -> None:
    tasks = draw_orthogonal(1, 3, rank=1, rows=3, columns=7)
    padded = [*tasks, torch.zeros(3, 7), torch.zeros(3, 7)]  # five models, three rows
    torch.testing.assert_close(merge_matrices("tsv_m", padded), sum(tasks[1:], tasks[0]), rtol=0, atol=2e-6)


def test_identical_models_give_their_first_directions_once() -> None:
    (task,) = draw_matrices(2, 1)
    left, values, right = torch.linalg.svd(task.double(), full_matrices=False)
    truncated = left[:, :6] * values[:6] @ right[:6]  # two models, twelve rows
    torch.testing.assert_close(merge_matrices("tsv_m", [task, task]), truncated.float(), rtol=0, atol=2e-6)


def test_a_task_of_zeros_still_counts() -> None:
    (task,) = draw_matrices(3, 1)
    left, values, right = torch.linalg.svd(task.double(), full_matrices=False)
    truncated = left[:, :4] * values[:4] @ right[:4]  # three models, twelve rows
    merged = merge_matrices("tsv_m", [task, torch.zeros(12, 20), torch.zeros(12, 20)])
    torch.testing.assert_close(merged, truncated.float(), rtol=0, atol=2e-6)


def test_a_rank_fraction_keeps_as_many_directions() -> None:
    (task,) = draw_matrices(4, 1)
    left, values, right = torch.linalg.svd(task.double(), full_matrices=False)
    truncated = left[:, :3] * values[:3] @ right[:3]
    merged = merge_matrices("tsv_m", [task], {"rank_fraction": 0.25})
    torch.testing.assert_close(merged, truncated.float(), rtol=0, atol=2e-6)


def test_task_vectors_of_low_rank_bring_what_they_have() -> None:
    tasks = draw_matrices(5, 2, rank=2)
    merged = merge_matrices("tsv_m", tasks)
    torch.testing.assert_close(merged.double(), merge_by_hand("tsv_m", tasks), rtol=0, atol=2e-6)
    assert int(torch.linalg.matrix_rank(merged, rtol=1e-5)) == 4


@pytest.mark.parametrize(("reduction", "share"), [("mean", 0.5), ("sum", 1.0), ("base", 0.0)])
def test_vectors_scalars_and_kernels_are_merged_entry_by_entry(reduction: str, share: float) -> None:
    base, models = draw_normal(6, 2)
    merged = MemoryMerge(METHOD, {"vector_reduce": reduction}, [1.0, -2.0])(base, models)
    for name in ("bias", "conv", "norm", "scale"):
        change = (models[0][name] - base[name]) - 2.0 * (models[1][name] - base[name])
        torch.testing.assert_close(merged[name], base[name] + share * change, rtol=1e-6, atol=1e-6)


def test_a_kernel_can_be_a_matrix_of_its_output_channels() -> None:
    kernels = [matrix.reshape(4, 5, 2, 2) for matrix in draw_matrices(7, 2, 4, 20)]
    merged = merge_matrices("tsv_m", kernels, {"conv_as_matrix": True})
    flat = merge_matrices("tsv_m", [kernel.reshape(4, 20) for kernel in kernels])
    assert torch.equal(merged, flat.reshape(4, 5, 2, 2))


def test_embeddings_are_merged_entry_by_entry_unless_asked_for() -> None:
    name, base = "model.embed_tokens.weight", torch.zeros(4, 4)
    merged = MemoryMerge(METHOD)({name: base}, [{name: A}, {name: B}])[name]
    torch.testing.assert_close(merged, (A + B) / 2, rtol=0, atol=1e-6)
    as_matrix = MemoryMerge(METHOD, {"dense_patterns": []})({name: base}, [{name: A}, {name: B}])[name]
    torch.testing.assert_close(as_matrix, MERGED, rtol=0, atol=2e-6)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_models=st.integers(1, 5),
    rank_fraction=st.none() | st.floats(0.05, 1.0),
    shape=st.sampled_from([(5, 9), (9, 5), (6, 6), (1, 7), (7, 1), (1, 1)]),
    data=st.data(),
)
def test_the_reference_agrees(
    seed: int, n_models: int, rank_fraction: float | None, shape: tuple[int, int], data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.sampled_from([-1.0, 0.5, 2.0]), min_size=n_models, max_size=n_models))
    tasks = draw_matrices(seed, n_models, *shape)
    parameters = {"rank_fraction": rank_fraction}
    merged = merge_matrices("tsv_m", tasks, parameters, weights)
    expected = merge_by_hand("tsv_m", tasks, parameters, weights)
    torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(256, 300), (300, 256)])
def test_matrices_whose_directions_are_first_looked_for_in_float32_agree_with_the_reference(
    shape: tuple[int, int],
) -> None:
    tasks = draw_matrices(8, 5, *shape)
    merged, expected = merge_matrices("tsv_m", tasks), merge_by_hand("tsv_m", tasks)
    torch.testing.assert_close(merged.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
