"""Scaling by depth: early layers hold what all tasks need and change little, late ones what a task is about.

Source: Wang et al. 2024, arXiv:2410.17146 (LiNeS), equation 4, and the authors' code for what is in no layer.
"""

from torch import Tensor

from workers.numerics import precision


def scale_of_layer(layer: int | None, n_layers: int, *, first: float, slope: float) -> float:
    """Return first + slope · layer / (n_layers − 1), the factor of a layer's task vector.

    layer: from 0, or None for a tensor that belongs to no layer; that one, and the only layer of a tower, have `first`.
    first: α, the factor of layer 0; slope: β, what the last layer has more.
    """
    if layer is None or n_layers <= 1:
        return first
    return first + slope * layer / (n_layers - 1)


def first_scale(sum_norm: float, merged_norm: float, n_models: int) -> float:
    """Return the paper's α: ‖Σᵢ τᵢ‖ / ‖τ_merged‖ / K, over the whole model; 1 / K where nothing was merged.

    It brings the early layers of any merge to the norm of an average.
    """
    return sum_norm / merged_norm / n_models if merged_norm > 0 else 1.0 / n_models


def scale_change(base: Tensor, merged: Tensor, scale: float) -> Tensor:
    """Return base + scale · (merged − base) of one tensor, float32, computed in float64.

    base, merged: any shape, float32. A scale of 1 gives the merged tensor to the bit, 0 the base.
    """
    return precision.round_to_float32(precision.weighted_sum((base, merged), (1.0 - scale, scale)))
