"""A classification task opened on one split, and what follows whatever is classified: measuring, training, learning.

The evaluators of texts and of images say how an example becomes a feature or logits; everything else is here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.domain.errors import NotFinite
from app.domain.tasks import LocalTask, Measurement
from workers.checkpoints.model import head_parameters
from workers.heads import OfExamples
from workers.model_contract import Probe, Trainable
from workers.scoring import classes


@dataclass(frozen=True)
class Opened:
    """A model under a task's head, and what it makes of the examples of one split."""

    task: LocalTask
    split: str
    module: torch.nn.Module  # in evaluation mode
    embeddings: frozenset[str]  # names of its parameters that embed the input
    labels: tuple[int, ...]  # of all examples, indices into the task's classes
    batches: Callable[[], Sequence[Sequence[int]]]  # -> every example once, as they are best run together
    logits: OfExamples  # -> [n, n_classes]
    features: OfExamples | None  # -> [n, width], before the head; None under the checkpoint's own head
    unreached: frozenset[str] = frozenset()  # names of its parameters that no logit depends on


def measure(opened: Opened, on_examples: Callable[[int, int], None]) -> Measurement:
    """Return the task's metric, computed from counts over the whole split.

    Raises: NotFinite when the model gives no numbers.
    """
    n = len(opened.labels)
    predicted = [classes.NO_CLASS] * n
    n_done = 0
    with torch.inference_mode():
        for batch in opened.batches():
            logits = opened.logits(batch)  # [n, n_classes]
            _refuse_not_finite(logits, opened.task)
            for index, label in zip(batch, logits.argmax(dim=-1).tolist(), strict=True):
                predicted[index] = label
            n_done += len(batch)
            on_examples(n_done, n)
    return classes.score(opened.task, opened.split, opened.labels, predicted)


def make_trainable(opened: Opened) -> Trainable:
    """Return the model for training on the split's labels, by cross-entropy under the task's head.

    Raises: ModelNotRunnable for a head of the checkpoint's own that cannot be told from its body.
    """
    labels = torch.tensor(opened.labels, device=next(opened.module.parameters()).device)

    def loss(batch: Sequence[int]) -> Tensor:
        return torch.nn.functional.cross_entropy(opened.logits(batch), labels[list(batch)])

    return Trainable(
        module=opened.module,
        embeddings=opened.embeddings,
        n_examples=len(opened.labels),
        loss=loss,
        head=head_parameters(opened.module) if opened.features is None else frozenset(),
        unreached=opened.unreached,
    )


def make_probe(opened: Opened) -> Probe:
    """Return the model for learning, or looking, on the split."""
    labels = torch.tensor(opened.labels, device=next(opened.module.parameters()).device)

    def losses(batch: Sequence[int]) -> Tensor:
        return torch.nn.functional.cross_entropy(opened.logits(batch), labels[list(batch)], reduction="none")

    return Probe(
        module=opened.module,
        n_examples=len(opened.labels),
        logits=opened.logits,
        losses=losses,
        features=opened.features,
        labels=opened.labels,
        order=[index for batch in opened.batches() for index in batch],
    )


def _refuse_not_finite(logits: Tensor, task: LocalTask) -> None:
    if not bool(torch.isfinite(logits).all()):
        raise NotFinite(
            f"The checkpoint's logits on task {task.spec.name!r} are NaN or infinite, expected finite. Look for "
            "NaN in its weights, or merge with a smaller scaling_coefficient."
        )
