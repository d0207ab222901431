"""`localize_and_stitch_dataless`, worked by hand."""

from collections.abc import Sequence
from math import floor

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, add, keep, task_vectors


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    def ranks(n: int) -> tuple[int, int]:
        return 0, min(n, max(1, floor(parameters["density"] * n + 1e-9)))

    localized = [keep(vector, base, parameters["trim_scope"], ranks) for vector in task_vectors(base, models)]
    stitched = np.zeros(len(localized[0]))
    for index in range(len(stitched)):
        own = [(weight, vector[index]) for weight, vector in zip(weights, localized, strict=True) if vector[index]]
        total = sum(weight for weight, _ in own)
        stitched[index] = sum(weight * value for weight, value in own) / total if total else 0.0
    return add(base, stitched)
