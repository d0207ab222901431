"""`model_stock`, worked by hand."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, rows


def merge(
    base: Arrays, models: Sequence[Arrays], _weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    merged = {}
    for name, origin in base.items():
        vectors = [rows(model[name] - origin, parameters["scope"]) for model in models]
        change = np.zeros_like(vectors[0])
        for row in range(len(change)):
            deltas = [vector[row] for vector in vectors]
            change[row] = _ratio(deltas, parameters) * np.mean(deltas, axis=0)
        merged[name] = origin + change.reshape(origin.shape)
    return merged


def _ratio(deltas: Sequence[Vector], parameters: Parameters) -> float:
    n = len(deltas)
    cosines = [_cosine(one, other) for one, other in combinations(deltas, 2)]
    cosine = np.mean(cosines) if parameters["mean"] == "cosine" else np.cos(np.mean(np.arccos(cosines)))
    if parameters["clamp"]:
        return float(np.clip(n * cosine / (1 + (n - 1) * cosine), 0, 1)) if cosine > 0 else 0.0
    denominator = 1 + (n - 1) * cosine
    return float(n * cosine / denominator) if abs(denominator) >= 1e-6 else 0.0


def _cosine(one: Vector, other: Vector) -> float:
    norms = np.linalg.norm(one) * np.linalg.norm(other)
    return float(np.clip(one @ other / norms, -1, 1)) if norms else 0.0
