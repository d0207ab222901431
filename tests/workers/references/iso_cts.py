"""`iso_cts`, worked by hand."""

from collections.abc import Sequence
from math import floor

import numpy as np

from tests.workers.references import matrices
from tests.workers.references.arrays import Arrays, Parameters, Vector


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    def merge_matrices(tasks: list[Vector]) -> Vector:
        tolerance, smaller = parameters["rank_tolerance"], min(tasks[0].shape)
        rest = smaller - floor(parameters["common_fraction"] * smaller + 1e-9)
        n_specific = min(round(rest / len(tasks)), smaller // len(tasks))
        total: Vector = np.sum(tasks, axis=0)
        triples = [matrices.truncate(total, smaller - n_specific * len(tasks), max(tolerance, matrices.NULL))]
        common = triples[0][0]
        for task in tasks:
            beside = task - common @ common.T @ task
            left, values, right = np.linalg.svd(beside, full_matrices=False)
            kept = (values > tolerance * np.linalg.norm(task)) & (np.arange(smaller) < n_specific)
            triples.append((left[:, kept], values[kept], right[kept]))
        left, values, right = (
            np.concatenate([triple[part] for triple in triples], axis=axis) for part, axis in ((0, 1), (1, 0), (2, 0))
        )
        if not len(values):
            return total
        result: Vector = values.mean() * matrices.polar(left) @ matrices.polar(right)
        return result

    return matrices.merge(base, models, weights, parameters, merge_matrices)
