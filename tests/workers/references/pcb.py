"""`pcb`, worked by hand: whole rows sorted; task vectors and scores are float32, all else float64."""

from collections.abc import Sequence
from math import floor

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, add, task_vectors


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    vectors = [_round(vector) for vector in task_vectors(base, models)]
    n, n_models = len(vectors[0]), len(vectors)
    if not n:
        return add(base, np.zeros(0))
    n_clipped = floor(parameters["clip_fraction"] * n + 1e-9)
    n_kept = max(1, floor(parameters["density"] * n + 1e-9))
    clipped, strengths = [], []
    for vector in vectors:
        ordered = np.sort(np.abs(vector))
        held = np.clip(np.abs(vector), ordered[n_clipped], ordered[n - 1 - n_clipped])
        clipped.append(np.sign(vector) * held)
        strengths.append(_rescale(held))
    signed = [np.sign(vector) * strength for vector, strength in zip(vectors, strengths, strict=True)]
    shares = []
    for index in range(n_models):
        if parameters["variant"] == "vision":
            agreement = sum(np.tanh(signed[index] * other) for other in signed) / n_models
        else:
            agreement = np.tanh(vectors[index] * sum(vectors))
        scores = _round(np.exp(n_models * (strengths[index] ** 2 - 1)) * agreement)
        shares.append(_rescale(np.maximum(scores, np.sort(scores)[n - n_kept])))
    total = np.maximum(sum(shares), 1e-12)
    weighted = sum(weight * share * part for weight, share, part in zip(weights, shares, clipped, strict=True))
    return add(base, parameters["scaling_coefficient"] * weighted / total)


def _round(values: Vector) -> Vector:
    return values.astype(np.float32).astype(np.float64)


def _rescale(values: Vector) -> Vector:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros(len(values))
