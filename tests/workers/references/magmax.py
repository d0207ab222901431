"""`magmax`, worked by hand."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, add, task_vectors


def merge(
    base: Arrays, models: Sequence[Arrays], _weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    vectors = task_vectors(base, models)
    largest = np.zeros(len(vectors[0]))
    for index in range(len(largest)):
        largest[index] = max(reversed(vectors), key=lambda vector: abs(vector[index]))[index]
    return add(base, parameters["scaling_coefficient"] * largest)
