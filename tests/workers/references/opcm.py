"""`opcm`, worked by hand: full bases, the whole model scaled after every step, as the paper has it."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references import matrices
from tests.workers.references.arrays import Arrays, Parameters, Vector


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    share = {"mean": 1 / len(models), "sum": 1.0, "base": 0.0}[parameters["vector_reduce"]]
    tasks = [{k: weight * (model[k] - base[k]) for k in base} for model, weight in zip(models, weights, strict=True)]
    norms = [_norm(task) for task in tasks]
    merged = {name: np.zeros_like(tensor) for name, tensor in base.items()}
    factor = 1.0
    for index, task in enumerate(tasks):
        for name, tensor in task.items():
            if matrices.is_matrix(name, tensor, parameters):
                flat, so_far = tensor.reshape(len(tensor), -1), merged[name].reshape(len(tensor), -1)
                new = factor * so_far + _clean(flat, so_far, parameters["protected_fraction"])
                merged[name] = new.reshape(tensor.shape)
            else:
                merged[name] = factor * merged[name] + share * tensor
        mean, norm = float(np.mean(norms[: index + 1])), _norm(merged)
        factor = norm / mean if mean else 1.0
        merged = {name: tensor / factor if factor else tensor for name, tensor in merged.items()}
    return {name: base[name] + parameters["scaling_coefficient"] * merged[name] for name in base}


def _clean(task: Vector, merged: Vector, protected_fraction: float) -> Vector:
    if not merged.any():
        return task
    left, values, right = np.linalg.svd(merged, full_matrices=True)
    n_leading = int((np.cumsum(values) / values.sum() <= protected_fraction).sum())
    inside = left.T @ task @ right.T
    np.fill_diagonal(inside, 0.0)
    inside[:n_leading, :n_leading] = 0.0
    result: Vector = left @ inside @ right
    return result


def _norm(task: Arrays) -> float:
    return float(np.sqrt(sum(np.sum(tensor**2) for tensor in task.values())))
