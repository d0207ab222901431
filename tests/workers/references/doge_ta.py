"""`doge_ta`, worked by hand."""

from collections.abc import Sequence
from math import floor

import numpy as np

from tests.workers.references import matrices
from tests.workers.references.arrays import Arrays, Parameters, Vector, keep


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    names = [name for name in sorted(base) if matrices.is_matrix(name, base[name], parameters)]
    of_matrices = {name: base[name] for name in names}
    density, scope = parameters["density"], parameters["trim_scope"]
    masks: dict[str, list[Vector]] = {name: [] for name in names}
    for model in models:
        flat = np.concatenate([(model[name] - base[name]).ravel() for name in names] or [np.zeros(0)])
        kept = keep(flat, of_matrices, scope, lambda n: (0, min(n, max(1, floor(density * n + 1e-9))))) != 0
        for name in names:
            masks[name].append(kept[: base[name].size].reshape(len(base[name]), -1))
            kept = kept[base[name].size :]

    merged: dict[str, Vector] = {}
    for name in base:
        alone, *others = ({name: arrays[name]} for arrays in (base, *models))

        def merge_matrices(tasks: list[Vector], name: str = name) -> Vector:
            return _merge_matrices(tasks, masks[name], parameters)

        merged |= matrices.merge(alone, others, weights, parameters, merge_matrices)
    return merged


def _merge_matrices(tasks: list[Vector], masks: list[Vector], parameters: Parameters) -> Vector:
    rank, n_shared = max(1, min(tasks[0].shape) // len(tasks)), min(tasks[0].shape) // parameters["subspace_divisor"]
    active = [
        (task, mask, parameters["strength"] / np.linalg.norm(task))
        for task, mask in zip(tasks, masks, strict=True)
        if task.any()
    ]
    stacked = np.concatenate([matrices.truncate(task, rank)[0] for task, _, _ in active], axis=1)
    shared = (stacked if len(active) == 1 else matrices.truncate(stacked, len(stacked))[0])[:, :n_shared]

    def slope_at(change: Vector) -> Vector:
        slope = np.zeros_like(change)
        together = np.sum([share * (task + change) for task, _, share in active], axis=0)
        for task, _, _ in active:
            residual = np.sum(task * (task - together), axis=1, keepdims=True)
            slope -= 2 * sum(share for _, _, share in active) * residual * task
        result: Vector = slope - shared @ shared.T @ slope
        return result

    change = matrices.adam(np.zeros_like(tasks[0]), slope_at, parameters["learning_rate"], parameters["steps"])
    result: Vector = np.sum([share * (task + change) * mask for task, mask, share in active], axis=0)
    return result
