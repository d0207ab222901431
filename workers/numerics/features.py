"""From hidden states to features, and from features to logits; pure functions of tensors."""

import torch
from torch import Tensor


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the hidden states over the tokens that the mask keeps.

    hidden: [n, t, width]; mask: [n, t], 1 keeps; result: [n, width]. Every row keeps at least one token.
    """
    kept = mask.unsqueeze(-1).to(hidden.dtype)  # [n, t, 1]
    return (hidden * kept).sum(dim=1) / kept.sum(dim=1)


def first_pool(hidden: Tensor) -> Tensor:
    """Return the first token's hidden state. hidden: [n, t, width]; result: [n, width]."""
    return hidden[:, 0]


def unit_norm(features: Tensor) -> Tensor:
    """Return the features with Euclidean length 1; a zero vector stays zero. features: [n, width]."""
    return torch.nn.functional.normalize(features, dim=-1)


def cosine_logits(features: Tensor, class_vectors: Tensor, scale: float) -> Tensor:
    """Return scale x cosine. features: [n, width]; class_vectors: [n_classes, width]; result: [n, n_classes]."""
    return scale * unit_norm(features) @ unit_norm(class_vectors).T


def linear_logits(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return features x weightᵀ + bias. weight: [n_classes, width]; bias: [n_classes]; result: [n, n_classes]."""
    return torch.nn.functional.linear(features, weight, bias)
