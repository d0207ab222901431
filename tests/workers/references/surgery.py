"""`surgery` without data, worked by hand: every task has the shared model, and no module."""

from collections.abc import Sequence

from tests.workers.references.arrays import Arrays, Parameters, Vector
from tests.workers.references.find import load_reference


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    shared = parameters["shared"]
    return load_reference(shared["method"])(base, models, weights, shared["parameters"])


def tasks(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> list[dict[str, Vector]]:
    return [merge(base, models, weights, parameters)] * len(models)
