"""Small state dicts with every shape that gives trouble: a scalar, one element, a bias, a kernel, no elements."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from tests.workers.references.arrays import Arrays

SHAPES: dict[str, tuple[int, ...]] = {
    "bias": (3,),
    "conv": (2, 1, 2, 2),
    "empty": (0, 4),
    "norm": (1,),
    "scale": (),
    "weight": (4, 30),
}


def draw_integers(seed: int, n_models: int) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Return a base and models of whole numbers: exact in bfloat16, many equal magnitudes, many balanced sums."""
    generator = torch.Generator().manual_seed(seed)
    base = {name: torch.randint(-5, 6, shape, generator=generator).float() for name, shape in SHAPES.items()}
    models = [
        {name: tensor + torch.randint(-4, 5, tensor.shape, generator=generator) for name, tensor in base.items()}
        for _ in range(n_models)
    ]
    return base, models


def draw_normal(seed: int, n_models: int) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Return a base and models near it, float32: no two magnitudes alike."""
    generator = torch.Generator().manual_seed(seed)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    models = [
        {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
        for _ in range(n_models)
    ]
    return base, models


def to_arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    """Return the state dict as float64 arrays."""
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def assert_close(merged: Mapping[str, Tensor], reference: Arrays, *, rtol: float = 1e-6, atol: float = 1e-6) -> None:
    """Check a merge against its reference, tensor by tensor."""
    assert sorted(merged) == sorted(reference)
    for name, expected in reference.items():
        np.testing.assert_allclose(merged[name].double().numpy(), expected, rtol=rtol, atol=atol, err_msg=name)
