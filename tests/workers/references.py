"""Every method worked out by hand in float64 numpy, entry by entry where it matters: slow, short, and nobody's copy.

A reference takes (base, models, weights, effective parameters), state dicts of float64 arrays, and returns the merged
state dict. The laws refuse a method without one.
"""

from collections.abc import Callable, Mapping, Sequence
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Arrays = Mapping[str, Vector]
Parameters = Mapping[str, Any]  # of any method: JSON values by name
Reference = Callable[[Arrays, Sequence[Arrays], Sequence[float], Parameters], dict[str, Vector]]


def average(
    _base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    divisor = sum(weights) if parameters["normalize"] else 1.0
    return {
        name: np.asarray(sum(weight * model[name] for weight, model in zip(weights, models, strict=True)) / divisor)
        for name in models[0]
    }


def task_arithmetic(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    coefficient = parameters["scaling_coefficient"]
    return {
        name: base[name]
        + coefficient * sum(weight * (model[name] - base[name]) for weight, model in zip(weights, models, strict=True))
        for name in base
    }


def slerp(
    _base: Arrays, models: Sequence[Arrays], _weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    t = parameters["t"]
    merged = {}
    for name, first in models[0].items():
        second = models[1][name]
        norms = np.linalg.norm(first.ravel()) * np.linalg.norm(second.ravel())
        cosine = np.dot(first.ravel(), second.ravel()) / norms if norms else 1.0
        if abs(cosine) > 0.9995:
            merged[name] = (1 - t) * first + t * second
        else:
            angle = np.arccos(cosine)
            merged[name] = (np.sin((1 - t) * angle) * first + np.sin(t * angle) * second) / np.sin(angle)
    return merged


def ties(base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters) -> dict[str, Vector]:
    scope, density = parameters["trim_scope"], parameters["density"]
    vectors = _task_vectors(base, models)
    trimmed = [
        np.sign(weight) * _keep(vector, base, scope, lambda n: (0, min(n, max(1, floor(density * n + 1e-9)))))
        for vector, weight in zip(vectors, weights, strict=True)
    ]
    strengths = [abs(weight) for weight in weights]
    votes = strengths if parameters["vote"] == "weighted" else [1.0] * len(weights)
    elected = np.sign(np.sum([vote * vector for vote, vector in zip(votes, trimmed, strict=True)], axis=0))
    elected[elected == 0] = 1.0 if parameters["zero_vote"] == "positive" or elected.sum() >= 0 else -1.0
    merged = np.zeros(len(elected))
    for index, sign in enumerate(elected):
        agreeing = [(s, v[index]) for s, v in zip(strengths, trimmed, strict=True) if s and np.sign(v[index]) == sign]
        if agreeing:
            weighted = [strength * value for strength, value in agreeing]
            merged[index] = {
                "sum": sum(weighted),
                "mean": sum(weighted) / sum(strength for strength, _ in agreeing),
                "max": max(weighted, key=abs),
            }[parameters["reduce"]]
    return _add(base, parameters["scaling_coefficient"] * merged)


def breadcrumbs(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    def ranks(n: int) -> tuple[int, int]:
        n_outliers = floor(parameters["outlier_fraction"] * n + 1e-9)
        n_kept = floor(parameters["density"] * n + 1e-9)
        if n_kept == 0 and parameters["mask_mode"] != "drop_outliers":
            return 0, n
        return {
            "band": (n_outliers, n_outliers + n_kept),
            "drop_outliers": (n_outliers, n),
            "keep_largest": (0, n_kept),
        }[parameters["mask_mode"]]

    masked = [
        weight * _keep(vector, base, parameters["scope"], ranks)
        for vector, weight in zip(_task_vectors(base, models), weights, strict=True)
    ]
    total = np.sum(masked, axis=0)
    if parameters["elect_signs"]:
        elected = np.where(total >= 0, 1.0, -1.0)
        total = np.sum([np.where(np.sign(vector) == elected, vector, 0.0) for vector in masked], axis=0)
    return _add(base, parameters["scaling_coefficient"] * total)


REFERENCES: dict[str, Reference] = {
    "average": average,
    "breadcrumbs": breadcrumbs,
    "slerp": slerp,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
}


def _task_vectors(base: Arrays, models: Sequence[Arrays]) -> list[Vector]:
    return [np.concatenate([(model[name] - base[name]).ravel() for name in sorted(base)]) for model in models]


def _add(base: Arrays, change: Vector) -> dict[str, Vector]:
    merged, begin = {}, 0
    for name in sorted(base):
        end = begin + base[name].size
        merged[name] = base[name] + change[begin:end].reshape(base[name].shape)
        begin = end
    return merged


def _keep(vector: Vector, base: Arrays, scope: str, ranks: Callable[[int], tuple[int, int]]) -> Vector:
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
