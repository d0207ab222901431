"""`arcee_fusion`, worked by hand."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, rows


def merge(
    base: Arrays, models: Sequence[Arrays], _weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    merged = {}
    for name, origin in base.items():
        ours, theirs = rows(origin, "row"), rows(models[0][name], "row")
        importance = np.array([_weigh(their, our) for their, our in zip(theirs, ours, strict=True)]).reshape(ours.shape)
        ordered = np.sort(importance.ravel())
        if not len(ordered):
            merged[name] = origin
            continue
        first, median, third = (ordered[int(q * (len(ordered) - 1))] for q in (0.25, 0.5, 0.75))
        is_taken = importance >= median + parameters["interquartile_ranges"] * (third - first)
        merged[name] = np.where(is_taken, theirs, ours).reshape(origin.shape)
    return merged


def _weigh(theirs: Vector, ours: Vector) -> Vector:
    p, q = _softmax(theirs), _softmax(ours)
    return np.abs(theirs - ours) * max(0.0, float(np.sum(p * np.log(p / q))))


def _softmax(row: Vector) -> Vector:
    powers = np.exp(row - row.max(initial=-np.inf))
    return np.array(powers / powers.sum())
