"""Coefficients by entropy minimization: models that are sure of what they say, on inputs without labels.

Source: Yang et al. 2023, arXiv:2310.02575 (AdaMerging), equation 4 and section 3.2.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import JsonValue
from torch import Tensor

from app.domain.coefficients import OTHERS
from app.domain.errors import NotFinite
from workers.datasets.batches import draw_batches
from workers.learning.coefficients import LearnedCoefficients
from workers.learning.curves import thin_out
from workers.learning.merged_weights import MergedWeights
from workers.learning.task_vectors import TaskVectors
from workers.learning_contract import LearningSession
from workers.model_contract import Probe, Step
from workers.numerics import optimize
from workers.numerics.entropy import entropy_of_logits, entropy_of_mean

CLAMP = (0.0, 1.0)
WATCHED_SHARE = 0.25  # of the steps, the last ones: the predictions that the report tells of


@dataclass(frozen=True)
class EntropyDescent:
    """How coefficients are learned."""

    granularity: Literal["layer", "task"]  # one coefficient per model and tensor, or per model
    start: float
    learning_rate: float
    steps: int
    batch_size: int
    is_clamped: bool  # to [0, 1], by projection


def learn_coefficients(session: LearningSession, descent: EntropyDescent) -> LearnedCoefficients:
    """Return the coefficients that Adam finds for Σ over tasks of the mean prediction entropy of a batch.

    Raises: NotFinite when the entropy is NaN or infinite, with step and task; whatever opening a task raises.
    """
    weights = MergedWeights(TaskVectors(session.source), session.device)
    tasks = [_open(session, index, weights) for index in range(len(session.tasks))]
    return _Run(session, descent, weights, tasks).learn()


@dataclass
class _Task:
    """A task while it is learned on."""

    name: str
    probe: Probe
    batches: Iterator[list[int]]
    predictions: list[Tensor] = field(default_factory=list)  # of the last steps, [n, n_classes] each


def _open(session: LearningSession, index: int, weights: MergedWeights) -> _Task:
    probe = session.open(index)
    weights.bind(probe.module, session.places(probe.module))
    return _Task(session.tasks[index], probe, iter(()))


@dataclass
class _Run:
    """One descent: the point is [n] for `task`, [n_tensors, n] for `layer`."""

    session: LearningSession
    descent: EntropyDescent
    weights: MergedWeights
    tasks: list[_Task]
    losses: list[float] = field(default_factory=list)

    def learn(self) -> LearnedCoefficients:
        """Descend, and return where it ended with how it went."""
        for index, task in enumerate(self.tasks):
            generator = self.session.generator("batches", index)
            task.batches = draw_batches(task.probe.n_examples, self.descent.batch_size, generator)
        n_models, names = self.session.source.n_models, self.weights.moved
        shape = (n_models,) if self.descent.granularity == "task" else (len(names), n_models)
        found = optimize.descend(
            torch.full(shape, self.descent.start, dtype=torch.float64),
            self.gradient,
            learning_rate=self.descent.learning_rate,
            steps=self.descent.steps,
            bounds=CLAMP if self.descent.is_clamped else None,
        )
        if self.descent.granularity == "task":
            return LearnedCoefficients({OTHERS: tuple(found.tolist())}, self.report())
        of_tensor = {name: tuple(row.tolist()) for name, row in zip(names, found, strict=True)}
        return LearnedCoefficients({OTHERS: (self.descent.start,) * n_models, **of_tensor}, self.report())

    def gradient(self, point: Tensor) -> Tensor:
        """Return the gradient of the loss of the next batches with respect to the point."""
        names = self.weights.moved
        self.weights.mix(self.spread(point))
        done = len(self.losses) + 1
        loss = sum(self.run(task, done) for task in self.tasks)
        self.losses.append(loss)
        gradients = self.weights.take_gradients()
        self.session.on_step(Step(done=done, total=self.descent.steps, loss=loss))
        rows = torch.stack([gradients[name] for name in names]) if names else torch.zeros(0, *point.shape[-1:])
        return rows.double().sum(0) if self.descent.granularity == "task" else rows.double()

    def spread(self, point: Tensor) -> Mapping[str, Tensor]:
        """Return the coefficients of each tensor."""
        if self.descent.granularity == "task":
            return dict.fromkeys(self.weights.moved, point)
        return dict(zip(self.weights.moved, point, strict=True))

    def run(self, task: _Task, step: int) -> float:
        """Run one batch of a task, leave the gradient of its mean entropy in the weights, and return the entropy."""
        logits = task.probe.logits(next(task.batches))  # [n, n_classes]
        entropy = entropy_of_logits(logits).mean()
        if not math.isfinite(entropy.item()):
            raise NotFinite(
                f"The prediction entropy on task {task.name!r} is {entropy.item()} at step {step} of "
                f"{self.descent.steps}, expected a finite number. Lower learning_rate (now "
                f"{self.descent.learning_rate}), clamp the coefficients, or look for NaN in the models."
            )
        if entropy.requires_grad:
            entropy.backward()  # type: ignore[no-untyped-call]
        if step > self.descent.steps * (1 - WATCHED_SHARE):
            task.predictions.append(logits.detach().softmax(dim=-1).cpu())
        return entropy.item()

    def report(self) -> dict[str, JsonValue]:
        """Return the losses, and per task how even the last predictions were spread over its classes."""
        return {
            "losses": thin_out(self.losses),
            "final_loss": self.losses[-1] if self.losses else None,
            "prediction_entropy": [_describe(task) for task in self.tasks],
        }


def _describe(task: _Task) -> JsonValue:
    """Return the entropy of a task's mean prediction beside the largest possible: near 0, all goes into one class."""
    if not task.predictions:
        return {"task": task.name, "of_mean": None, "largest": None}
    predictions = torch.cat(task.predictions)
    return {"task": task.name, "of_mean": entropy_of_mean(predictions), "largest": math.log(predictions.shape[-1])}
