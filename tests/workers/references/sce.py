"""`sce`, worked by hand: entry by entry."""

from collections.abc import Sequence
from math import floor

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector


def merge(
    base: Arrays, models: Sequence[Arrays], _weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    merged = {}
    for name, origin in base.items():
        deltas = np.array([(model[name] - origin).ravel() for model in models])
        selected = deltas * _select(deltas, parameters["density"])
        energies = (selected**2).sum(axis=1)
        shares = energies / energies.sum() if energies.sum() > 0 else np.full(len(models), 1 / len(models))
        kept = selected if parameters["variant"] == "mergekit" else deltas
        change = np.array([_erase(column, shares) for column in kept.T])
        merged[name] = origin + change.reshape(origin.shape)
    return merged


def _select(deltas: Vector, density: float) -> Vector:
    if density == 1:
        return np.ones(deltas.shape[1])
    variance = deltas.var(axis=0)
    differing = [index for index in range(len(variance)) if len(set(deltas[:, index])) > 1]
    n_kept = min(len(differing), max(1, floor(density * len(differing) + 1e-9)))
    mask = np.zeros(len(variance))
    mask[sorted(differing, key=lambda index: (-variance[index], index))[:n_kept]] = 1
    return mask


def _erase(column: Vector, shares: Vector) -> float:
    sign = 1.0 if column.sum() >= 0 else -1.0
    agreeing = np.sign(column) == sign
    total = shares[agreeing].sum()
    return float(shares[agreeing] @ column[agreeing] / total) if total > 0 else 0.0
