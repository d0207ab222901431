"""Trying merged weights on tasks: what they lose, and how often they are right."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from app.domain.errors import HeadMismatch, NotFinite
from workers.learning.composed_factors import ComposedFactors
from workers.learning.merged_weights import MergedWeights
from workers.learning.task_vectors import TaskVectors
from workers.learning_contract import LearningSession
from workers.model_contract import Probe

BATCH_SIZE = 32


class Trials:
    """The tasks of a merge under weights with one coefficient per model, which replace one another."""

    def __init__(self, session: LearningSession, *, model: int | None = None) -> None:
        """Open the tasks. model: which one stands for the merged weights; None: the base model."""
        self._names = session.tasks
        self._weights = _open_weights(session)
        self._probes: list[Probe] = []
        for task in range(len(session.tasks)):
            probe = session.open(task, model=model)
            self._weights.bind(probe.module, session.places(probe.module))
            self._probes.append(probe)

    def loss(self, coefficients: Tensor) -> float:
        """Return the mean over the tasks of the mean loss per example. coefficients: one per model, [n].

        Raises: NotFinite naming the task.
        """
        losses = self._on_each(coefficients, lambda probe, batch: probe.losses(batch))
        for name, loss in zip(self._names, losses, strict=True):
            if not math.isfinite(loss):
                raise NotFinite(
                    f"The loss on task {name!r} is {loss} with coefficients {coefficients.tolist()}, expected a finite "
                    "number. Look for NaN in the models, or lower the bound of the coefficients."
                )
        return math.fsum(losses) / len(losses)

    def accuracy(self, coefficients: Tensor) -> float:
        """Return the mean over the tasks of the share of examples that are right. coefficients: one per model, [n].

        Raises: HeadMismatch for a task without classes.
        """
        for name, probe in zip(self._names, self._probes, strict=True):
            if len(probe.labels) != probe.n_examples:
                raise HeadMismatch(f"Task {name!r} has no classes to be right about; try merges by their loss.")
        shares = self._on_each(coefficients, _count_right)
        return math.fsum(shares) / len(shares)

    def _on_each(self, coefficients: Tensor, measure: Callable[[Probe, list[int]], Tensor]) -> list[float]:
        """Return the mean over each task's examples. measure: (probe, batch) -> [n], one number per example."""
        self._weights.mix(dict.fromkeys(self._weights.moved, coefficients))
        with torch.no_grad():
            return [
                math.fsum(value for batch in _batches(probe) for value in measure(probe, batch).double().tolist())
                / probe.n_examples
                for probe in self._probes
            ]


def _open_weights(session: LearningSession) -> MergedWeights | ComposedFactors:
    if session.factors:
        return ComposedFactors(session.source, session.factors, session.device)
    return MergedWeights(TaskVectors(session.source), session.device)


def share_out(models: Sequence[int], n_models: int) -> Tensor:
    """Return equal coefficients of some models that sum to 1, [n] float64."""
    coefficients = torch.zeros(n_models, dtype=torch.float64)
    coefficients[list(models)] = 1.0 / len(models)
    return coefficients


def _count_right(probe: Probe, batch: list[int]) -> Tensor:
    labels = torch.tensor([probe.labels[index] for index in batch])
    return probe.logits(batch).argmax(dim=-1).cpu() == labels


def _batches(probe: Probe) -> Iterator[list[int]]:
    for begin in range(0, probe.n_examples, BATCH_SIZE):
        yield list(range(begin, min(begin + BATCH_SIZE, probe.n_examples)))
