"""`adamerging` without data, worked by hand: the coefficients that are given, or those it starts with."""

from collections.abc import Sequence

from tests.workers.references.arrays import Arrays, Parameters, Vector


def merge(
    base: Arrays, models: Sequence[Arrays], _weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    given = parameters["coefficients"] or {"*": [parameters["initial_coefficient"]] * len(models)}
    return {
        name: base[name]
        + sum(
            coefficient * (model[name] - base[name])
            for coefficient, model in zip(given.get(name, given.get("*")), models, strict=True)
        )
        for name in base
    }
