"""`lorahub` without data, worked by hand: the coefficients that are given, or those it starts with, 0."""

from collections.abc import Sequence

from tests.workers.references.arrays import Arrays, Parameters, Vector


def merge(
    base: Arrays, models: Sequence[Arrays], _weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    given = parameters["coefficients"] or {"*": [0.0] * len(models)}
    return {
        name: base[name]
        + sum(weight * (model[name] - base[name]) for weight, model in zip(given["*"], models, strict=True))
        for name in base
    }
