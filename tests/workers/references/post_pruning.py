"""`post_pruning`, worked by hand."""

from collections.abc import Sequence
from math import floor

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, add, keep, task_vectors


def merge(
    base: Arrays, _models: Sequence[Arrays], _weights: Sequence[float], _parameters: Parameters
) -> dict[str, Vector]:
    return {name: np.array(tensor) for name, tensor in base.items()}


def tasks(
    base: Arrays, models: Sequence[Arrays], _weights: Sequence[float], parameters: Parameters
) -> list[dict[str, Vector]]:
    def ranks(n: int) -> tuple[int, int]:
        return 0, floor(parameters["density"] * n + 1e-9)

    return [add(base, keep(vector, base, parameters["scope"], ranks)) for vector in task_vectors(base, models)]
