"""`average`, worked by hand."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector


def merge(
    _base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    divisor = sum(weights) if parameters["normalize"] else 1.0
    return {
        name: np.asarray(sum(weight * model[name] for weight, model in zip(weights, models, strict=True)) / divisor)
        for name in models[0]
    }
