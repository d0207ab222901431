"""`tsv_c`, worked by hand."""

from collections.abc import Sequence
from math import floor

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, truncate


def merge(
    base: Arrays, _models: Sequence[Arrays], _weights: Sequence[float], _parameters: Parameters
) -> dict[str, Vector]:
    return {name: np.array(tensor) for name, tensor in base.items()}


def tasks(
    base: Arrays, models: Sequence[Arrays], _weights: Sequence[float], parameters: Parameters
) -> list[dict[str, Vector]]:
    fraction = parameters["rank_fraction"]

    def compress(tensor: Vector, model: Vector) -> Vector:
        smaller = min(tensor.shape, default=0)
        rank = max(1, smaller // len(models) if fraction is None else floor(fraction * smaller + 1e-9))
        if tensor.ndim != 2 or rank * sum(tensor.shape) >= tensor.size:
            return model
        return tensor + truncate(model - tensor, rank)

    return [{name: compress(base[name], model[name]) for name in base} for model in models]
