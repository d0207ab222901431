"""`breadcrumbs`, worked by hand."""

from collections.abc import Sequence
from math import floor

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, add, keep, task_vectors


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    def ranks(n: int) -> tuple[int, int]:
        n_outliers = floor(parameters["outlier_fraction"] * n + 1e-9)
        n_kept = floor(parameters["density"] * n + 1e-9)
        if n_kept == 0 and parameters["mask_mode"] != "drop_outliers":
            return 0, n
        return {
            "band": (n_outliers, n_outliers + n_kept),
            "drop_outliers": (n_outliers, n),
            "keep_largest": (0, n_kept),
        }[parameters["mask_mode"]]

    masked = [
        weight * keep(vector, base, parameters["scope"], ranks)
        for vector, weight in zip(task_vectors(base, models), weights, strict=True)
    ]
    total = np.sum(masked, axis=0)
    if parameters["elect_signs"]:
        elected = np.where(total >= 0, 1.0, -1.0)
        total = np.sum([np.where(np.sign(vector) == elected, vector, 0.0) for vector in masked], axis=0)
    return add(base, parameters["scaling_coefficient"] * total)
