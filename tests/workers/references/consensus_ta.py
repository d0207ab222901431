"""`consensus_ta`, worked by hand."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, add, task_vectors


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    own = [weight * vector for weight, vector in zip(weights, task_vectors(base, models), strict=True)]
    merged = np.sum(own, axis=0)
    thresholds = parameters.get("thresholds", [parameters["mask_threshold"]] * len(own))  # of single models
    needs = [
        np.abs(vector) > threshold * np.abs(merged - vector) for vector, threshold in zip(own, thresholds, strict=True)
    ]
    return add(base, parameters["scaling_coefficient"] * merged * (np.sum(needs, axis=0) >= parameters["min_tasks"]))
