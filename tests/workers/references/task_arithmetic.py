"""`task_arithmetic`, worked by hand."""

from collections.abc import Sequence

from tests.workers.references.arrays import Arrays, Parameters, Vector


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    coefficient = parameters["scaling_coefficient"]
    return {
        name: base[name]
        + coefficient * sum(weight * (model[name] - base[name]) for weight, model in zip(weights, models, strict=True))
        for name in base
    }
