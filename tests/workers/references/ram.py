"""`ram`, worked by hand: entry by entry."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector


def merge(
    base: Arrays, models: Sequence[Arrays], _weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    merged = {}
    for name, origin in base.items():
        vectors = [(model[name] - origin).ravel() for model in models]
        changing = [
            [model for model, vector in enumerate(vectors) if abs(vector[index]) > parameters["change_threshold"]]
            for index in range(origin.size)
        ]
        boosts = [_boost(model, changing, parameters) for model in range(len(models))]
        change = np.zeros(origin.size)
        for index, found in enumerate(changing):
            if len(found) == 1:
                change[index] = boosts[found[0]] * vectors[found[0]][index]
            elif found:
                change[index] = np.mean([vectors[model][index] for model in found])
        merged[name] = origin + change.reshape(origin.shape)
    return merged


def _boost(model: int, changing: Sequence[Sequence[int]], parameters: Parameters) -> float:
    n_unique = sum(found == [model] for found in changing)
    n_shared = sum(model in found and len(found) > 1 for found in changing)
    ratio = n_shared / n_unique if n_unique else 0.0
    return 1 + float(parameters["unique_boost"] * min(ratio, parameters["max_overlap_ratio"]))
