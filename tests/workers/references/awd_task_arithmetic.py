"""`awd_task_arithmetic`, worked by hand: gradient descent on the redundant vector itself, entry by entry."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, add, runs, task_vectors


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    vectors = np.array(task_vectors(base, models))
    change = np.zeros(vectors.shape[1])
    for begin, end in runs(base, parameters["scope"]):
        part = vectors[:, begin:end]
        redundant = find_redundant(part, parameters)
        change[begin:end] = sum(weight * (vector - redundant) for weight, vector in zip(weights, part, strict=True))
    return add(base, parameters["scaling_coefficient"] * change)


def find_redundant(vectors: Vector, parameters: Parameters) -> Vector:
    """Return δ of the lowest objective among the iterates of gradient descent from 0."""
    scale = 1.0
    if parameters["normalize"] and vectors.size:
        scale = float(np.mean(np.linalg.norm(vectors, axis=1))) / 2.0 or 1.0
    scaled = vectors / scale
    redundant, best, lowest = np.zeros(vectors.shape[1]), np.zeros(vectors.shape[1]), np.inf
    for step in range(parameters["steps"] + 1):
        objective, gradient = _objective(scaled, redundant, parameters["norm_penalty"])
        if objective < lowest:
            lowest, best = objective, redundant
        if step < parameters["steps"]:
            redundant = redundant - parameters["learning_rate"] * gradient
    return best * scale


def _objective(vectors: Vector, redundant: Vector, norm_penalty: float) -> tuple[float, Vector]:
    n = len(vectors)
    rest = vectors - redundant
    norms = np.linalg.norm(rest, axis=1)
    objective, gradient = 0.0, np.zeros(len(redundant))
    for i in range(n):
        for j in range(i + 1, n):
            if min(norms[i], norms[j]) < 1e-6:
                continue
            cosine = rest[i] @ rest[j] / (norms[i] * norms[j])
            objective += 2 * abs(cosine) / (n * (n - 1))
            slope = (rest[i] + rest[j]) / (norms[i] * norms[j])
            slope = slope - cosine * (rest[i] / norms[i] ** 2 + rest[j] / norms[j] ** 2)
            gradient -= 2 * np.sign(cosine) * slope / (n * (n - 1))
    length = float(np.linalg.norm(redundant))
    if length > 0:
        gradient = gradient + norm_penalty * redundant / length
    return objective + norm_penalty * length, gradient
