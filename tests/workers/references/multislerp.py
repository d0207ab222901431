"""`multislerp`, worked by hand: with the step along the tangent plane that the method leaves out."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, has_directions


def merge(
    base: Arrays | None, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    shares = np.array(weights) / (np.sum(weights) if parameters["normalize"] else 1.0)
    merged = {}
    for name, first in models[0].items():
        origin = np.zeros_like(first) if base is None else base[name]
        vectors = np.array([(model[name] - origin).ravel() for model in models])
        merged[name] = origin + _interpolate(vectors, shares).reshape(first.shape)
    return merged


def _interpolate(vectors: Vector, shares: Vector) -> Vector:
    norms = np.linalg.norm(vectors, axis=1)
    units = np.array([vector / norm if norm else vector for vector, norm in zip(vectors, norms, strict=True)])
    if not has_directions(units, shares):
        return np.array(shares @ vectors)
    mean = shares @ units / np.linalg.norm(shares @ units)
    tangents = [unit - unit @ mean * mean for unit in units]
    step = np.sum([share * tangent for share, tangent in zip(shares, tangents, strict=True)], axis=0)
    length = np.linalg.norm(step)
    moved = mean * np.cos(length) + step * (np.sin(length) / length if length else 1.0)
    return np.array(moved * (shares @ norms))
