"""The worked example that every method's page and test uses: one tensor of six entries, base 0, three task vectors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.workers.memory import MemoryMerge
from tests.workers.multitask import merge_tasks
from workers.catalog import load_method

BASE = torch.zeros(6)
TASK_VECTORS = torch.tensor(
    [
        [3.0, -1.0, 0.5, 0.0, 2.0, -0.25],
        [1.0, 2.0, -0.5, 0.5, -1.5, -0.125],
        [-2.0, 0.5, 0.75, -0.5, 1.0, 0.625],
    ]
)


def merge_example(
    method: str,
    parameters: Mapping[str, Any],
    weights: Sequence[float] = (),
    task_vectors: Tensor = TASK_VECTORS,
    *,
    piece_elements: int = 1 << 20,
) -> list[float]:
    """Return the merge of the example, rounded to six places."""
    merge = MemoryMerge(load_method(method), parameters, weights, piece_elements=piece_elements)
    merged = merge({"w": BASE.view(1, 6)}, [{"w": vector.view(1, 6)} for vector in task_vectors])
    return [round(value, 6) for value in merged["w"].flatten().tolist()]


def patch_example(
    method: str,
    parameters: Mapping[str, Any],
    weights: Sequence[float] = (),
    task_vectors: Tensor = TASK_VECTORS,
    *,
    piece_elements: int = 1 << 20,
) -> list[list[float]]:
    """Return the model of each task of the example, rounded to six places."""
    merge = MemoryMerge(load_method(method), parameters, weights, piece_elements=piece_elements)
    tasks = merge_tasks(merge, {"w": BASE.view(1, 6)}, [{"w": vector.view(1, 6)} for vector in task_vectors])
    return [[round(value, 6) for value in task["w"].flatten().tolist()] for task in tasks]
