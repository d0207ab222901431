"""`ties`, worked by hand."""

from collections.abc import Sequence
from math import floor

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, add, keep, task_vectors
from tests.workers.references.voting import merge_disjointly


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    scope, density = parameters["trim_scope"], parameters["density"]
    vectors = task_vectors(base, models)
    trimmed = [
        np.sign(weight) * keep(vector, base, scope, lambda n: (0, min(n, max(1, floor(density * n + 1e-9)))))
        for vector, weight in zip(vectors, weights, strict=True)
    ]
    merged = merge_disjointly(
        trimmed, weights, parameters["vote"], parameters["reduce"], is_positive=parameters["zero_vote"] == "positive"
    )
    return add(base, parameters["scaling_coefficient"] * merged)
