"""The draws of random methods, worked with Python's whole numbers: seed 0, keys "model 0", "model 1", …"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, runs

Probabilities = Callable[[Vector], Vector]  # of the entries of one run


def drop(
    base: Arrays, vectors: Sequence[Vector], scope: str, probabilities: Probabilities, rescale: str
) -> list[Vector]:
    """Keep each entry with its probability, run by run, and scale what is left; the sums of magnitudes per tensor."""
    dropped = []
    for model, vector in enumerate(vectors):
        chances = np.concatenate([np.zeros(0), *(probabilities(vector[slice(*run)]) for run in runs(base, scope))])
        draws = np.array([draw for name in sorted(base) for draw in _draws(model, name, base[name].size)])
        kept = np.where(draws < chances, vector, 0.0)
        dropped.append(_rescale(base, vector, kept, chances, rescale))
    return dropped


def chances_by_rank(parameters: Parameters) -> Probabilities:
    """Return the probabilities of a row's entries: the largest is kept most often, equal ones from the front."""
    density, spread = parameters["density"], parameters["density_spread"]

    def chances(row: Vector) -> Vector:
        if len(row) == 1:
            return np.full(1, density)
        found = np.zeros(len(row))
        for rank, index in enumerate(sorted(range(len(row)), key=lambda index: (abs(row[index]), -index))):
            found[index] = min(1.0, max(1e-6, density - spread + 2 * spread * rank / (len(row) - 1)))
        return found

    return chances


def _rescale(base: Arrays, vector: Vector, kept: Vector, chances: Vector, rescale: str) -> Vector:
    if rescale == "none":
        return kept
    if rescale != "l1":
        return kept / chances
    scaled = kept.copy()
    for begin, end in runs(base, "tensor"):
        after = np.abs(kept[begin:end]).sum()
        scaled[begin:end] *= np.abs(vector[begin:end]).sum() / after if after else 1.0
    return scaled


def _draws(model: int, tensor: str, n: int) -> list[float]:
    digest = hashlib.sha256(f"0\0mask\0model {model}\0{tensor}".encode()).digest()
    return [_split_mix(int.from_bytes(digest[:8], "big"), index + 1) for index in range(n)]


def _split_mix(key: int, counter: int) -> float:
    state = (key + counter * 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return ((state ^ (state >> 31)) >> 11) / 2**53
