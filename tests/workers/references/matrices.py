"""What the references of matrix methods share: which tensors are matrices; singular triples, polar factors by SVD."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector

NULL = 1e-7


def merge(
    base: Arrays,
    models: Sequence[Arrays],
    weights: Sequence[float],
    parameters: Parameters,
    merge_matrices: Callable[[list[Vector]], Vector],
) -> dict[str, Vector]:
    """Return the base plus what becomes of each tensor's task vectors; matrices of which one is not zero are merged."""
    merged = {}
    for name, tensor in base.items():
        tasks = [weight * (model[name] - tensor) for model, weight in zip(models, weights, strict=True)]
        if not is_matrix(name, tensor, parameters):
            change = {"mean": sum(tasks) / len(tasks), "sum": sum(tasks), "base": 0.0}[parameters["vector_reduce"]]
        elif all(not task.any() for task in tasks):
            change = 0.0
        else:
            change = merge_matrices([task.reshape(len(tensor), -1) for task in tasks]).reshape(tensor.shape)
        merged[name] = np.asarray(tensor + parameters["scaling_coefficient"] * change)
    return merged


def is_matrix(name: str, tensor: Vector, parameters: Parameters) -> bool:
    """Whether a tensor is treated as a matrix."""
    is_shaped = tensor.ndim == 2 or (tensor.ndim > 2 and parameters["conv_as_matrix"])
    return is_shaped and tensor.size > 0 and not any(fnmatchcase(name, glob) for glob in parameters["dense_patterns"])


def truncate(matrix: Vector, rank: int, tolerance: float = NULL) -> tuple[Vector, Vector, Vector]:
    """Return the leading singular triples, without those that count as zero."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    n_kept = min(rank, int((values > tolerance * values[0]).sum()))
    return left[:, :n_kept], values[:n_kept], right[:n_kept]


def polar(matrix: Vector, tolerance: float = NULL) -> Vector:
    """Return the polar factor, without directions that count as zero."""
    left, _, right = truncate(matrix, min(matrix.shape), tolerance)
    return left @ right


def count_directions(tasks: Sequence[Vector], rank_fraction: float | None) -> int:
    smaller = min(tasks[0].shape)
    return max(1, smaller // len(tasks) if rank_fraction is None else int(rank_fraction * smaller + 1e-9))


def adam(point: Vector, slope_at: Callable[[Vector], Vector], learning_rate: float, steps: int) -> Vector:
    mean = square = np.zeros_like(point)
    for step in range(1, steps + 1):
        slope = slope_at(point)
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        unbiased = np.sqrt(square / (1 - 0.999**step)) + 1e-8
        point = point - learning_rate * mean / (1 - 0.9**step) / unbiased
    return point
