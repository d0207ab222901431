"""Entropy of predictions, in nats."""

from torch import Tensor


def entropy_of_logits(logits: Tensor) -> Tensor:
    """Return the entropy of softmax(logits) of each row. logits: [n, n_classes]; result: [n]; 0 for one class."""
    log_probabilities = logits.log_softmax(dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=-1)


def entropy_of_mean(probabilities: Tensor) -> float:
    """Return the entropy of the mean prediction: 0 where all rows are put into one class, certain of it.

    probabilities: [n, n_classes], rows of sum 1, n > 0.
    """
    mean = probabilities.double().mean(dim=0)
    return float(-(mean * mean.clamp_min(1e-300).log()).sum())
