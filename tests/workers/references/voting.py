"""Election and disjoint merge, entry by entry."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references.arrays import Vector


def merge_disjointly(
    vectors: Sequence[Vector], weights: Sequence[float], vote: str, reduce: str, *, is_positive: bool
) -> Vector:
    """Merge, of task vectors that are negated where their weight is, what has the sign that most magnitude has."""
    strengths = [abs(weight) for weight in weights]
    votes = strengths if vote == "weighted" else [1.0] * len(weights)
    elected = np.sign(np.sum([vote * vector for vote, vector in zip(votes, vectors, strict=True)], axis=0))
    elected[elected == 0] = 1.0 if is_positive or elected.sum() >= 0 else -1.0
    merged = np.zeros(len(elected))
    for index, sign in enumerate(elected):
        agreeing = [(s, v[index]) for s, v in zip(strengths, vectors, strict=True) if s and np.sign(v[index]) == sign]
        if agreeing:
            weighted = [strength * value for strength, value in agreeing]
            merged[index] = {
                "sum": sum(weighted),
                "mean": sum(weighted) / sum(strength for strength, _ in agreeing),
                "max": max(weighted, key=abs),
            }[reduce]
    return merged
