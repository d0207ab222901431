"""`tall_mask`, worked by hand."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, add, task_vectors
from tests.workers.references.find import load_reference


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    shared = parameters["shared"]
    return load_reference(shared["method"])(base, models, weights, shared["parameters"])


def tasks(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> list[dict[str, Vector]]:
    """Thresholds of single models may stand beside the parameters, as `thresholds`."""
    vectors = task_vectors(base, models)
    (merged,) = task_vectors(base, [merge(base, models, weights, parameters)])
    thresholds = parameters.get("thresholds", [parameters["mask_threshold"]] * len(vectors))
    return [
        add(base, np.where(np.abs(vector) > threshold * np.abs(merged - vector), merged, 0.0))
        for vector, threshold in zip(vectors, thresholds, strict=True)
    ]
