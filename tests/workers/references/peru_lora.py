"""`peru_lora`, worked by hand."""

from collections.abc import Sequence

import numpy as np

from tests.workers.references.arrays import Arrays, Parameters, Vector, truncate


def merge(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> dict[str, Vector]:
    if parameters["mode"] == "per_adapter":
        return {name: np.array(tensor) for name, tensor in base.items()}
    return {
        name: tensor
        + parameters["scaling_coefficient"]
        * sum(weight * (model[name] - tensor) for weight, model in zip(weights, models, strict=True))
        for name, tensor in base.items()
    }


def tasks(
    base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Parameters
) -> list[dict[str, Vector]]:
    def compress(tensor: Vector, model: Vector) -> Vector:
        if tensor.ndim < 2 or tensor.size == 0:
            return model
        change = (model - tensor).reshape(len(tensor), -1)  # a kernel's rows are its outputs
        rank = min(parameters["rank"] or 16, *change.shape)
        if rank * sum(change.shape) >= tensor.size:
            return model
        values = np.linalg.svd(change, compute_uv=False)
        share = np.cumsum(values**2) / max(np.sum(values**2), 1e-300)
        needed = int(np.searchsorted(share, parameters["energy"])) + 1 if parameters["energy"] < 1 else rank
        return tensor + truncate(change, min(rank, needed)).reshape(tensor.shape)

    shared = merge(base, models, weights, parameters)
    return [{name: compress(shared[name], model[name]) for name in base} for model in models]
