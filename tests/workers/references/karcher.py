"""`karcher`, worked by hand: on the vectors themselves."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, has_directions


def merge(
    base: Arrays | None, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    shares = np.array(weights) / np.sum(weights)
    merged = {}
    for name, first in models[0].items():
        origin = np.zeros_like(first) if base is None else base[name]
        vectors = np.array([(model[name] - origin).ravel() for model in models])
        norms = np.linalg.norm(vectors, axis=1)
        moved = [index for index, norm in enumerate(norms) if norm > 0]
        units = vectors[moved] / norms[moved, None]
        if has_directions(units, shares[moved]):
            direction = _mean(units, shares[moved] / shares[moved].sum(), parameters)
            merged[name] = origin + (shares @ norms * direction).reshape(first.shape)
        else:
            merged[name] = origin + (shares @ vectors).reshape(first.shape)
    return merged


def _mean(units: Vector, shares: Vector, parameters: Parameters) -> Vector:
    mean = shares @ units / np.linalg.norm(shares @ units)
    for _ in range(parameters["max_iterations"]):
        step = np.zeros_like(mean)
        for unit, share in zip(units, shares, strict=True):
            across = unit - unit @ mean * mean
            angle = np.arctan2(np.linalg.norm(across), unit @ mean)
            if np.linalg.norm(across) > 1e-6:
                step += share * angle * across / np.linalg.norm(across)
        length = np.linalg.norm(step)
        if length < parameters["tolerance"]:
            break
        mean = np.cos(length) * mean + np.sin(length) / length * step
        mean /= np.linalg.norm(mean)
    return mean
