"""What the references share: state dicts of float64 arrays, flattened task vectors, exact ranks by sorting."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Arrays = Mapping[str, Vector]
Parameters = Mapping[str, Any]  # of any method: JSON values by name
Reference = Callable[[Any, Sequence[Arrays], Sequence[float], Parameters], dict[str, Vector]]  # Any: base or None


def task_vectors(base: Arrays, models: Sequence[Arrays]) -> list[Vector]:
    """Return each task vector over the whole model, tensors in the order of their names."""
    return [np.concatenate([(model[name] - base[name]).ravel() for name in sorted(base)]) for model in models]


def add(base: Arrays, change: Vector) -> dict[str, Vector]:
    """Return the base plus a change over the whole model."""
    merged, begin = {}, 0
    for name in sorted(base):
        end = begin + base[name].size
        merged[name] = base[name] + change[begin:end].reshape(base[name].shape)
        begin = end
    return merged


def keep(vector: Vector, base: Arrays, scope: str, ranks: Callable[[int], tuple[int, int]]) -> Vector:
    """Keep, in every run of entries that are ranked together, the ranks from the first to before the last."""
    kept, begin = np.zeros(len(vector)), 0
    for size in _sizes(base, scope):
        first, last = ranks(size)
        order = sorted(range(begin, begin + size), key=lambda index: (-abs(vector[index]), index))[first:last]
        kept[order] = vector[order]
        begin += size
    return kept


def _sizes(base: Arrays, scope: str) -> list[int]:
    sizes: list[int] = []
    for name in sorted(base):
        tensor = base[name]
        width = tensor.shape[-1] if scope == "row" and tensor.ndim > 1 else tensor.size
        sizes += [width] * (tensor.size // width) if width else []
    return [sum(sizes)] if scope == "global" else sizes


def truncate(matrix: Vector, rank: int) -> Vector:
    """Return the best approximation of a matrix by one of a rank."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    truncated: Vector = left[:, :rank] * values[:rank] @ right[:rank]
    return truncated


def rows(tensor: Vector, scope: str) -> Vector:
    """Return the tensor as the rows that are taken one by one: itself flattened, its rows, or its columns."""
    if tensor.ndim < 2 or scope == "tensor":
        return tensor.reshape(1, -1)
    if scope == "row":
        return tensor.reshape(int(np.prod(tensor.shape[:-1])), tensor.shape[-1])
    return tensor.reshape(tensor.shape[0], int(np.prod(tensor.shape[1:]))).T


def has_directions(units: Vector, shares: Vector) -> bool:
    """Return whether the weighted mean of unit vectors (and zeros) is more than rounding."""
    sizes = np.abs(shares) * np.linalg.norm(units, axis=1)
    return bool(np.linalg.norm(shares @ units) > 1e-6 * sizes.sum())


def runs(base: Arrays, scope: str) -> list[tuple[int, int]]:
    """Return [begin, end) of every run of entries that belong together: the whole model, each tensor, each row."""
    ends = np.cumsum(_sizes(base, scope), dtype=int).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))
