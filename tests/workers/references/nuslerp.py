"""`nuslerp`, worked by hand: vector by vector."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, rows


def merge(
    base: Arrays | None, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    t = weights[1] / sum(weights) if abs(sum(weights)) >= 1e-6 else 0.5
    merged = {}
    for name, first in models[0].items():
        origin = np.zeros_like(first) if base is None else base[name]
        ones, others = (rows(model[name] - origin, parameters["scope"]) for model in models)
        arcs = np.array([_walk(one, other, t) for one, other in zip(ones, others, strict=True)]).reshape(ones.shape)
        is_turned = parameters["scope"] == "column" and first.ndim > 1
        merged[name] = origin + (arcs.T if is_turned else arcs).reshape(first.shape)
    return merged


def _walk(one: Vector, other: Vector, t: float) -> Vector:
    norms = np.linalg.norm(one) * np.linalg.norm(other)
    cosine = np.clip(one @ other / norms, -1, 1) if norms else 1.0
    sine = np.sqrt(1 - cosine**2)
    if sine < 1e-6:
        return (1 - t) * one + t * other
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * one + np.sin(t * angle) * other) / sine
