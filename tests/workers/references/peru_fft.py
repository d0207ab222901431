"""`peru_fft`, worked by hand."""

from collections.abc import Sequence
from math import floor

from tests.workers.references.arrays import Arrays, Parameters, Vector, add, keep, task_vectors
from tests.workers.references.find import load_reference


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    shared = parameters["shared"]
    return load_reference(shared["method"])(base, models, weights, shared["parameters"])


def tasks(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> list[dict[str, Vector]]:
    def ranks(n: int) -> tuple[int, int]:
        return 0, floor(parameters["density"] * n + 1e-9)

    shared = merge(base, models, weights, parameters)
    return [add(shared, keep(vector, shared, parameters["scope"], ranks)) for vector in task_vectors(shared, models)]
