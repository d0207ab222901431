"""`della`, worked by hand, draw by draw."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, add, task_vectors
from tests.workers.references.draws import chances_by_rank, drop
from tests.workers.references.voting import merge_disjointly


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    left = drop(base, task_vectors(base, models), "row", chances_by_rank(parameters), parameters["rescale"])
    turned = [np.sign(weight) * vector for weight, vector in zip(weights, left, strict=True)]
    merged = merge_disjointly(turned, weights, parameters["vote"], parameters["reduce"], is_positive=True)
    return add(base, parameters["scaling_coefficient"] * merged)
