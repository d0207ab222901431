"""`tsv_m`, worked by hand."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references import matrices
from tests.workers.references.arrays import Arrays, Parameters, Vector


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    def merge_matrices(tasks: list[Vector]) -> Vector:
        rank = matrices.count_directions(tasks, parameters["rank_fraction"])
        triples = [matrices.truncate(task, rank) for task in tasks if task.any()]
        left, values, right = (
            np.concatenate([triple[part] for triple in triples], axis=axis) for part, axis in ((0, 1), (1, 0), (2, 0))
        )
        result: Vector = matrices.polar(left) @ np.diag(values) @ matrices.polar(right)
        return result

    return matrices.merge(base, models, weights, parameters, merge_matrices)
