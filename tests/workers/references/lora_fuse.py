"""LoRA fuse by hand: the model itself, or the point on the line from the base through it."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.workers.references.arrays import Arrays


def merge(base: Arrays, models: Sequence[Arrays], weights: Sequence[float], parameters: Mapping[str, Any]) -> Arrays:
    """Return θ₀ + λ (θ₁ − θ₀)."""
    factor = parameters["scaling_coefficient"]
    return {name: base[name] + factor * (models[0][name] - base[name]) for name in base}
