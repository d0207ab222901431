"""`wudi`, worked by hand: the gradient is summed task by task, as the paper has it."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references import matrices
from tests.workers.references.arrays import Arrays, Parameters, Vector


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    def merge_matrices(tasks: list[Vector]) -> Vector:
        active = [task for task in tasks if task.any()]
        total: Vector = np.sum(active, axis=0)
        if parameters["solver"] == "closed_form":
            inputs = np.sum([task.T @ task / np.sum(task**2) for task in active], axis=0)
            wanted = np.sum([task @ task.T @ task / np.sum(task**2) for task in active], axis=0)
            inverse = np.linalg.pinv(inputs, rcond=1e-6, hermitian=True)
            nearest: Vector = total + (wanted - total @ inputs) @ inverse  # of all minima, to the sum
            return nearest
        if np.linalg.norm(gradient(total, active)) <= 1e-12 * np.linalg.norm(gradient(0 * total, active)):
            return total  # a minimum already; what is left of the gradient is rounding
        return matrices.adam(
            total, lambda point: gradient(point, active), parameters["learning_rate"], parameters["steps"]
        )

    return matrices.merge(base, models, weights, parameters, merge_matrices)


def gradient(point: Vector, tasks: Sequence[Vector]) -> Vector:
    result: Vector = np.sum([2 * (point - task) @ task.T @ task / np.sum(task**2) for task in tasks], axis=0)
    return result
