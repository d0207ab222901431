"""The golden matrices that every matrix method is tested on, and how a merge of matrices is asked for."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from app.domain.parameter_checks import fill_defaults
from tests.workers.memory import MemoryMerge
from tests.workers.references.find import load_reference
from workers.catalog import load_method

A = torch.tensor([[4.0, 1, 0, 0], [0, 3, 1, 0], [0, 0, 2, 1], [1, 0, 0, 1]])
B = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 3], [2, 0, 0, 1], [0, 1, 1, 0]])


def merge_matrices(
    method: str,
    task_vectors: Sequence[Tensor],
    parameters: Mapping[str, Any] | None = None,
    weights: Sequence[float] = (),
) -> Tensor:
    """Return the merge of task vectors on a base of zeros."""
    merge = MemoryMerge(load_method(method), parameters or {}, weights)
    return merge({"w": torch.zeros_like(task_vectors[0])}, [{"w": vector} for vector in task_vectors])["w"]


def merge_by_hand(
    method: str,
    task_vectors: Sequence[Tensor],
    parameters: Mapping[str, Any] | None = None,
    weights: Sequence[float] = (),
) -> Tensor:
    """Return what the method's reference makes of the same, float64."""
    effective = fill_defaults(load_method(method).card.parameters, parameters or {}, n_models=len(task_vectors))
    models = [{"w": vector.double().numpy()} for vector in task_vectors]
    base = {"w": 0 * models[0]["w"]}
    merged = load_reference(method)(base, models, weights or [1.0] * len(models), effective)
    return torch.from_numpy(merged["w"])


def draw_matrices(seed: int, n: int, rows: int = 12, columns: int = 20, rank: int | None = None) -> list[Tensor]:
    """Return random matrices, of low rank if one is given."""
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        return list(torch.randn(n, rows, columns, generator=generator))
    left = torch.randn(n, rows, rank, generator=generator, dtype=torch.float64)
    return list((left @ torch.randn(n, rank, columns, generator=generator, dtype=torch.float64)).float())


def draw_orthogonal(seed: int, n: int, rank: int, rows: int = 12, columns: int = 20) -> list[Tensor]:
    """Return matrices of low rank whose rows, and whose columns, are orthogonal to those of the others."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, n * rank, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, n * rank, generator=generator)).Q
    values = 1.0 + torch.rand(n * rank, generator=generator)
    parts = [slice(index * rank, (index + 1) * rank) for index in range(n)]
    return [left[:, part] * values[part] @ right[:, part].T for part in parts]
