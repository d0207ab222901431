"""`tall_mask`, worked by hand."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, add, task_vectors


def merge(
    base: Arrays, models: Sequence[Arrays], _weights: Sequence[float], _parameters: Parameters
) -> dict[str, Vector]:
    return add(base, np.sum(task_vectors(base, models), axis=0))


def tasks(
    base: Arrays, models: Sequence[Arrays], _weights: Sequence[float], parameters: Parameters
) -> list[dict[str, Vector]]:
    vectors = task_vectors(base, models)
    total = np.sum(vectors, axis=0)
    return [
        add(base, np.where(np.abs(vector) > parameters["mask_threshold"] * np.abs(total - vector), total, 0.0))
        for vector in vectors
    ]
