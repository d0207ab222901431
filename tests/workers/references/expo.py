"""`expo`, worked by hand."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    factor = parameters["extrapolation_factor"]
    merged = {}
    for name, origin in base.items():
        average = sum(weight * model[name] for weight, model in zip(weights, models, strict=True)) / np.sum(weights)
        merged[name] = average + factor * (average - origin)
    return merged
