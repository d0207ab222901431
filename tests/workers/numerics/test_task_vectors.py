"""Task vectors: what is subtracted can be added back."""

import pytest
import torch

from workers.numerics import task_vectors


def test_base_is_subtracted_from_every_model() -> None:
    deltas = task_vectors.subtract(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1.0, 1.0]))
    assert deltas.tolist() == [[0.0, 1.0], [2.0, 3.0]]


def test_scaling_zero_returns_base() -> None:
    base = torch.randn(5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(task_vectors.add(base, torch.ones(5), scaling_coefficient=0.0), base)


def test_the_sum_is_rounded_once() -> None:
    # float32 rounds 1e8 + 0.3·10 to a multiple of 8; so must the sum in float64
    added = task_vectors.add(torch.tensor([1e8]), torch.tensor([10.0]), scaling_coefficient=0.3)
    assert added.tolist() == [float(torch.tensor(1e8 + 3.0))]
    assert added.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_adding_changes_no_argument(dtype: torch.dtype) -> None:
    base, delta = torch.ones(3, dtype=dtype), torch.ones(3, dtype=torch.float64)
    task_vectors.add(base, delta, scaling_coefficient=2.0)
    assert base.tolist() == [1.0, 1.0, 1.0]
    assert delta.tolist() == [1.0, 1.0, 1.0]
