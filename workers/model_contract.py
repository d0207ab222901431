"""What an evaluator and a fine-tuner are: functions with a card.

An evaluator (workers/evaluators/) measures a checkpoint on tasks of one kind, and says how such a task is trained on; a
fine-tuner (workers/finetuning/) trains whatever an evaluator hands it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from app.domain.catalog import ClassesRule, DataFormat, EvaluatorCard, FinetunerCard
from app.domain.checkpoints import LocalCheckpoint
from app.domain.parameters import Parameters, schema_of
from app.domain.tasks import LocalTask, Measurement

Loaded = TypeVar("Loaded")


class ModelSource(Protocol):
    """Runnable models of one job: each checkpoint is loaded once in each form (workers/checkpoints/model.py)."""

    @property
    def device(self) -> torch.device:
        """Where the models lie."""

    def open(self, checkpoint: LocalCheckpoint, load: Callable[[LocalCheckpoint, torch.device], Loaded]) -> Loaded:
        """Return what `load(checkpoint, device)` makes of a checkpoint: a model in evaluation mode with what feeds it.

        The same checkpoint under the same loader is the same object.
        """


@dataclass(frozen=True)
class Subject:
    """What is measured or trained: a checkpoint on a task, under a head made with a base model."""

    task: LocalTask
    checkpoint: LocalCheckpoint
    base_model: LocalCheckpoint


@dataclass(frozen=True)
class Trainable:
    """A task as a fine-tuner sees it: a model, and its loss on any batch of training examples."""

    module: torch.nn.Module  # whose parameters may be trained; in evaluation mode, so without dropout
    embeddings: frozenset[str]  # names of the parameters that embed the input
    n_examples: int
    loss: Callable[[Sequence[int]], Tensor]  # indices of training examples -> mean loss, 0-d, with its graph


@dataclass(frozen=True)
class Probe:
    """A task as a learner or an analysis sees it: a model in float32 and evaluation mode, and what it says of examples.

    The examples are those of one split.

    Whoever replaces the module's weights, or lets them have gradients, changes what the functions compute.
    """

    module: torch.nn.Module
    n_examples: int
    logits: Callable[[Sequence[int]], Tensor]  # indices of examples -> [n, n_classes], with its graph
    losses: Callable[[Sequence[int]], Tensor]  # indices of examples -> loss of each under its label, [n]; likewise
    features: Callable[[Sequence[int]], Tensor] | None  # -> what the head sees, [n, width]; None: a head of its own
    labels: Sequence[int]  # class of each example
    order: Sequence[int]  # all examples, those of like length together: batches of neighbors carry little padding


class OpenProbe(Protocol):
    """Open a subject on one split of its task."""

    def __call__(self, subject: Subject, split: str, models: ModelSource) -> Probe:
        """Return the model with its outputs."""


class Measure(Protocol):
    """Measure a subject on one split of its task; `on_examples(done, total)` reports."""

    def __call__(
        self, subject: Subject, split: str, models: ModelSource, on_examples: Callable[[int, int], None]
    ) -> tuple[Measurement, ...]:
        """Return the measurements."""


class MakeTrainable(Protocol):
    """Open a subject for training on its task's `train` split."""

    def __call__(self, subject: Subject, models: ModelSource) -> Trainable:
        """Return the model with its loss."""


@dataclass(frozen=True)
class Evaluator:
    """An evaluator as the pipelines take it."""

    card: EvaluatorCard
    parameters: type[Parameters]
    measure: Measure
    make_trainable: MakeTrainable | None  # None: tasks of this kind cannot be trained on
    open_probe: OpenProbe | None = None  # None: merge methods cannot learn on tasks of this kind


def evaluator(
    *,
    name: str,
    title: str,
    summary: str,
    source: str,
    heads: tuple[str, ...],
    metrics: tuple[str, ...],
    parameters: type[Parameters],
    version: int = 1,
    classes: ClassesRule = "required",
    data_formats: tuple[DataFormat, ...] = ("jsonl",),
    make_trainable: MakeTrainable | None = None,
    trainable_heads: tuple[str, ...] = (),
    open_probe: OpenProbe | None = None,
) -> Callable[[Measure], Evaluator]:
    """Turn `measure(subject, split, models, on_examples)` into an evaluator with its card.

    `parameters` is the form of a task's `preprocessing`; the evaluator's name is the `kind` of the tasks it measures.
    Raise `version` whenever it gives other numbers for the same input: what an older one measured is not reused then.
    """
    card = EvaluatorCard(
        name=name,
        version=version,
        title=title,
        summary=summary,
        source=source,
        heads=heads,
        trainable_heads=trainable_heads,
        metrics=metrics,
        classes=classes,
        data_formats=data_formats,
        parameters=schema_of(parameters),
        is_learnable=open_probe is not None,
    )

    def decorate(function: Measure) -> Evaluator:
        return Evaluator(card, parameters, function, make_trainable, open_probe)

    return decorate


@dataclass(frozen=True)
class Step:
    """One step of a training run, as it is reported."""

    done: int  # steps done, this one included
    total: int
    loss: float


@dataclass(frozen=True)
class Finetuner:
    """A fine-tuning technique as the pipeline takes it.

    `train(trainable, parameters, seed, on_step)` changes the trainable's module in place and returns the names of the
    parameters it has trained.
    """

    card: FinetunerCard
    parameters: type[Parameters]
    train: Callable[..., frozenset[str]]


def finetuner(
    *,
    name: str,
    title: str,
    summary: str,
    source: str,
    parameters: type[Parameters],
    produces: Literal["dense", "adapter"] = "dense",
    version: int = 1,
) -> Callable[[Callable[..., frozenset[str]]], Finetuner]:
    """Turn `train(trainable, parameters, seed, on_step)` into a fine-tuning technique with its card."""
    card = FinetunerCard(
        name=name,
        version=version,
        title=title,
        summary=summary,
        source=source,
        produces=produces,
        parameters=schema_of(parameters),
    )

    def decorate(function: Callable[..., frozenset[str]]) -> Finetuner:
        return Finetuner(card, parameters, function)

    return decorate
