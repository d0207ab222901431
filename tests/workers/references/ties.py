"""`ties`, worked by hand."""

from collections.abc import Sequence
from math import floor

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, add, keep, task_vectors


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    scope, density = parameters["trim_scope"], parameters["density"]
    vectors = task_vectors(base, models)
    trimmed = [
        np.sign(weight) * keep(vector, base, scope, lambda n: (0, min(n, max(1, floor(density * n + 1e-9)))))
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
    return add(base, parameters["scaling_coefficient"] * merged)
