"""`iso_c`, worked by hand."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references import matrices
from tests.workers.references.arrays import Arrays, Parameters, Vector


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    def merge_matrices(tasks: list[Vector]) -> Vector:
        total = np.sum(tasks, axis=0)
        left, values, right = matrices.truncate(total, min(total.shape), parameters["rank_tolerance"])
        result: Vector = values.mean() * left @ right if len(values) else total
        return result

    return matrices.merge(base, models, weights, parameters, merge_matrices)
