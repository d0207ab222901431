"""`slerp`, worked by hand."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector


def merge(
    _base: Arrays, models: Sequence[Arrays], _weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    t = parameters["t"]
    merged = {}
    for name, first in models[0].items():
        second = models[1][name]
        norms = np.linalg.norm(first.ravel()) * np.linalg.norm(second.ravel())
        cosine = np.dot(first.ravel(), second.ravel()) / norms if norms else 1.0
        if abs(cosine) > 0.9995:
            merged[name] = (1 - t) * first + t * second
        else:
            angle = np.arccos(cosine)
            merged[name] = (np.sin((1 - t) * angle) * first + np.sin(t * angle) * second) / np.sin(angle)
    return merged
