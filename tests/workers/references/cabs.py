"""`cabs`, worked by hand."""

from collections.abc import Sequence
from math import ceil

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, add, runs, task_vectors


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    taken: set[int] = set()
    total = np.zeros(sum(tensor.size for tensor in base.values()))
    for vector, weight in zip(task_vectors(base, models), weights, strict=True):
        for block in _blocks(base, parameters["block_size"]):
            free = [index for index in block if index not in taken and vector[index] and weight]
            n_kept = ceil(parameters["density"] * len(block) - 1e-9)
            for index in sorted(free, key=lambda index: (-abs(vector[index]), index))[:n_kept]:
                taken.add(index)
                total[index] += weight * vector[index]
    return add(base, parameters["scaling_coefficient"] * total)


def _blocks(base: Arrays, size: int) -> list[range]:
    return [
        range(first, min(end, first + size)) for begin, end in runs(base, "tensor") for first in range(begin, end, size)
    ]
