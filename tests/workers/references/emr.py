"""`emr`, worked by hand, entry by entry."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, add, task_vectors


def merge(
    base: Arrays, models: Sequence[Arrays], _weights: Sequence[float], _parameters: Parameters
) -> dict[str, Vector]:
    return add(base, _unify(task_vectors(base, models)))


def tasks(
    base: Arrays, models: Sequence[Arrays], _weights: Sequence[float], parameters: Parameters
) -> list[dict[str, Vector]]:
    vectors = task_vectors(base, models)
    unified = _unify(vectors)
    sizes = [base[name].size for name in sorted(base)]
    found = []
    for vector in vectors:
        masked = np.where(vector * unified > 0, unified, 0.0)
        found.append(add(base, _scale(vector, masked, sizes, parameters["rescale"]) * masked))
    return found


def _unify(vectors: Sequence[Vector]) -> Vector:
    unified = np.zeros(len(vectors[0]))
    for index in range(len(unified)):
        entries = [vector[index] for vector in vectors]
        sign = np.sign(sum(entries))
        unified[index] = sign * max([sign * entry for entry in entries if sign * entry > 0], default=0.0)
    return unified


def _scale(vector: Vector, masked: Vector, sizes: Sequence[int], rescale: str) -> float:
    if rescale == "none":
        return 1.0
    whole = kept = 0.0
    begin = 0
    for size in sizes:
        share = 1.0 if rescale == "global" else 1.0 / max(1, size)
        whole += share * float(np.abs(vector[begin : begin + size]).sum())
        kept += share * float(np.abs(masked[begin : begin + size]).sum())
        begin += size
    return whole / kept if kept else 0.0
