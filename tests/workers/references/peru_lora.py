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
        rank = min(parameters["rank"], *tensor.shape) if tensor.ndim == 2 else 0
        if tensor.ndim != 2 or rank * sum(tensor.shape) >= tensor.size:
            return model
        values = np.linalg.svd(model - tensor, compute_uv=False)
        share = np.cumsum(values**2) / max(np.sum(values**2), 1e-300)
        needed = int(np.searchsorted(share, parameters["energy"])) + 1 if parameters["energy"] < 1 else rank
        return tensor + truncate(model - tensor, min(rank, needed))

    shared = merge(base, models, weights, parameters)
    return [{name: compress(shared[name], model[name]) for name in base} for model in models]
