"""`consensus_ties`, worked by hand."""

from collections.abc import Sequence
from math import floor

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, add, keep, task_vectors
from tests.workers.references.voting import merge_disjointly


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    def ranks(n: int) -> tuple[int, int]:
        return 0, min(n, max(1, floor(parameters["density"] * n + 1e-9)))

    vectors = task_vectors(base, models)
    trimmed = [
        np.sign(weight) * keep(vector, base, parameters["trim_scope"], ranks)
        for weight, vector in zip(weights, vectors, strict=True)
    ]
    merged = merge_disjointly(
        trimmed, weights, parameters["vote"], parameters["reduce"], is_positive=parameters["zero_vote"] == "positive"
    )
    own = [weight * vector for weight, vector in zip(weights, vectors, strict=True)]
    thresholds = parameters.get("thresholds", [parameters["mask_threshold"]] * len(own))  # of single models
    needs = [
        np.abs(vector) > threshold * np.abs(merged - vector) for vector, threshold in zip(own, thresholds, strict=True)
    ]
    return add(base, parameters["scaling_coefficient"] * merged * (np.sum(needs, axis=0) >= parameters["min_tasks"]))
