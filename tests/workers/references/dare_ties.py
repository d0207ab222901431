"""`dare_ties`, worked by hand, draw by draw."""

from collections.abc import Sequence
from math import floor

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, add, keep, task_vectors
from tests.workers.references.draws import drop
from tests.workers.references.voting import merge_disjointly


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    def chances(entries: Vector) -> Vector:
        return np.full(len(entries), parameters["density"])

    def ranks(n: int) -> tuple[int, int]:
        return 0, min(n, max(1, floor(parameters["trim_density"] * n + 1e-9)))

    left = drop(base, task_vectors(base, models), "tensor", chances, parameters["rescale"])
    trimmed = [
        np.sign(weight) * keep(vector, base, parameters["trim_scope"], ranks)
        for weight, vector in zip(weights, left, strict=True)
    ]
    merged = merge_disjointly(
        trimmed, weights, parameters["vote"], parameters["reduce"], is_positive=parameters["zero_vote"] == "positive"
    )
    return add(base, parameters["scaling_coefficient"] * merged)
