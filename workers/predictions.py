"""What methods learn on where labels are texts: −log p of an example's tokens, each given those before it.

The evaluators of answers and of perplexity say what these tokens are. There are no classes here, so nothing that needs
their probabilities can be learned: no entropy, no accuracy, no sum over all outcomes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from app.domain.errors import HeadMismatch
from app.domain.tasks import LocalTask
from workers.checkpoints.language import IGNORED
from workers.model_contract import Probe, TokenLogits

Predict = Callable[[Sequence[int]], tuple[Tensor, Tensor]]
"""Indices of examples -> logits [n, t, vocabulary] float32 with their graph, and tokens [n, t], padding IGNORED."""


def make_probe(
    task: LocalTask, module: torch.nn.Module, predict: Predict, counts: Sequence[int], order: Sequence[int]
) -> Probe:
    """Return the model for learning on a split. counts: tokens of each example; order: as a probe has it."""

    def losses(batch: Sequence[int]) -> Tensor:
        logits, targets = predict(batch)
        of_tokens = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED
        )  # [n, t]
        return of_tokens.sum(dim=-1) / (targets != IGNORED).sum(dim=-1).clamp(min=1)

    def logits_of_tokens(index: int) -> Tensor:
        logits, targets = predict([index])
        return logits[0, targets[0] != IGNORED]

    def refuse(_batch: Sequence[int]) -> Tensor:
        raise HeadMismatch(
            f"Task {task.spec.name!r} is of kind {task.spec.kind!r}, whose models give no probabilities of classes. "
            "Learn on a task of classification, or by a method that takes −log p of texts."
        )

    return Probe(
        module=module,
        n_examples=len(counts),
        logits=refuse,
        losses=losses,
        features=None,
        labels=(),
        order=order,
        tokens=TokenLogits(logits_of_tokens, counts),
    )
