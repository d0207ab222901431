"""`dc_merge`, worked by hand."""

from collections.abc import Sequence
from math import floor

import numpy as np

from tests.workers.references import matrices
from tests.workers.references.arrays import Arrays, Parameters, Vector


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    def merge_matrices(tasks: list[Vector]) -> Vector:
        rank = matrices.count_directions(tasks, parameters["rank_fraction"])
        triples = [matrices.truncate(task, rank) for task in tasks if task.any()]
        owner = np.concatenate([[index] * len(triple[1]) for index, triple in enumerate(triples)])
        left = matrices.polar(np.concatenate([triple[0] for triple in triples], axis=1))
        right = matrices.polar(np.concatenate([triple[2] for triple in triples]))
        n_kept = max(1, floor(parameters["density"] * (rank * len(tasks)) ** 2 + 1e-9))
        kept = []
        for u, values, v in triples:
            coordinates = left.T @ (u * _smooth(values, parameters) @ v) @ right.T
            largest = np.sort(np.abs(coordinates).ravel())[::-1]
            threshold = largest[min(n_kept, len(largest)) - 1] * (1 - 1e-9)  # rounding does not break ties
            kept.append(np.where(np.abs(coordinates) >= threshold, coordinates, 0.0))
        total = np.sum(kept, axis=0)
        merged = np.zeros_like(total)
        for row, column in np.argwhere(owner[:, None] == owner):
            agreeing = [one[row, column] for one in kept if np.sign(one[row, column]) == np.sign(total[row, column])]
            if total[row, column] != 0 and agreeing:
                merged[row, column] = np.mean(agreeing)
        result: Vector = left @ merged @ right
        return result

    return matrices.merge(base, models, weights, parameters, merge_matrices)


def _smooth(values: Vector, parameters: Parameters) -> Vector:
    if parameters["smoothing"] == "none":
        return values
    steepness = 1.0
    if parameters["smoothing"] == "linear":
        steepness = min(parameters["smoothing_ratio"], values[0] / values[-1])
    line = np.linspace(steepness, 1.0, len(values))
    result: Vector = values.sum() * line / line.sum()
    return result
