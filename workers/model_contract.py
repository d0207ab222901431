"""What an evaluator and a fine-tuner are: functions with a card.

An evaluator (workers/evaluators/) measures a checkpoint on tasks of one kind, and says how such a task is trained on; a
fine-tuner (workers/finetuning/) trains whatever an evaluator hands it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from app.domain.catalog import ClassesRule, DataFormat, EvaluatorCard, FinetunerCard
from app.domain.checkpoints import LocalCheckpoint
from app.domain.parameters import Parameters, schema_of
from app.domain.tasks import LocalTask, Measurement
from workers.surgery import Modules

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
    modules: Modules = field(default_factory=dict)  # that run beside the weights


@dataclass(frozen=True)
class Trainable:
    """A task as a fine-tuner sees it: a model, and its loss on any batch of training examples."""

    module: torch.nn.Module  # whose parameters may be trained; in evaluation mode, so without dropout
    embeddings: frozenset[str]  # names of the parameters that embed the input
    n_examples: int
    loss: Callable[[Sequence[int]], Tensor]  # indices of training examples -> mean loss, 0-d, with its graph
    head: frozenset[str] = frozenset()  # names of the parameters of a classification head of its own, if it has one
    unreached: frozenset[str] = frozenset()  # names of the parameters that the loss does not depend on


@dataclass(frozen=True)
class Probe:
    """A task as a learner or an analysis sees it: a model in float32 and evaluation mode, and what it says of examples.

    The examples are those of one split.

    Whoever replaces the module's weights, or lets them have gradients, changes what the functions compute.
    """

    module: torch.nn.Module
    n_examples: int
    logits: Callable[[Sequence[int]], Tensor]  # indices of examples -> [n, n_classes], with its graph; or HeadMismatch
    losses: Callable[[Sequence[int]], Tensor]  # indices -> −log p of each label, of tokens the mean, [n]; likewise
    features: Callable[[Sequence[int]], Tensor] | None  # -> what the head sees, [n, width]; None: a head of its own
    labels: Sequence[int]  # class of each example; empty where there are no classes
    order: Sequence[int]  # all examples, those of like length together: batches of neighbors carry little padding
    tokens: "TokenLogits | None" = None  # where labels are texts; None: where they are classes


@dataclass(frozen=True)
class TokenLogits:
    """What a model says of the tokens of an example's text, each given those before it."""

    of_example: Callable[[int], Tensor]  # index -> [t, vocabulary], with its graph
    counts: Sequence[int]  # t of each example


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
    data_formats: tuple[DataFormat, ...] = ("jsonl", "parquet"),
    make_trainable: MakeTrainable | None = None,
    trainable_heads: tuple[str, ...] = (),
    open_probe: OpenProbe | None = None,
    has_class_logits: bool = False,
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
        has_class_logits=has_class_logits,
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


class StateStore(Protocol):
    """Where a training keeps what it needs to go on after it was killed (workers/training/states.py)."""

    def load(self) -> dict[str, Any] | None:
        """Return what an earlier attempt at the same training saved last; None: there is nothing."""

    def is_due(self) -> bool:
        """Whether it is time to save again."""

    def save(self, state: dict[str, Any]) -> None:
        """Keep a state of tensors and plain values in place of the last one, wholly or not at all."""


Start = Mapping[str, tuple[Tensor, Tensor]]
"""Where the factors of an adapter begin, by module: A [r, in], B [out, r]."""


@dataclass(frozen=True)
class Run:
    """What surrounds a training: its draws, its reports, its memory."""

    seed: int  # of the order of the examples, and of dropout
    base_key: str  # identity of the base model's weights; keys the draws that adapters of one base share
    on_step: Callable[[Step], None]
    states: StateStore | None = None  # None: nothing is kept
    validate: Callable[[int], Measurement] | None = None  # the task's metric after a step, by the validation split
    start: Start | None = None  # of another adapter: this one begins there, too
    on_begin: Callable[["LoraResult"], None] | None = None  # is shown an adapter before it learns, and may refuse it


@dataclass(frozen=True)
class LoraUpdate:
    """What was learned of one module, float32, in PEFT's orientation."""

    module: str  # its path in memory
    in_shape: tuple[int, ...]  # [in], or [in, *kernel]
    a: Tensor  # [r, in · kernel]
    b: Tensor  # [out, r]
    start: tuple[Tensor, Tensor] | None  # A and B where a linearized training began
    is_transposed: bool  # the base stores [in, out]


@dataclass(frozen=True)
class LoraResult:
    """An adapter as it was trained: each module computes W x + s B A x, or the first-order expansion of that."""

    updates: tuple[LoraUpdate, ...]
    alpha: float
    use_rslora: bool
    whole: Mapping[str, Tensor] = field(default_factory=dict)  # what learned beside, by name in memory: the head


@dataclass(frozen=True)
class Trained:
    """What a fine-tuner has done to its trainable."""

    n_parameters: int  # that learned
    n_steps: int  # that it ran
    kept_step: int  # after which step the model was as it is now
    losses: tuple[float, ...]  # one per step
    validations: tuple[Measurement, ...]
    adapter: LoraResult | None = None  # None: the module's own weights were trained


@dataclass(frozen=True)
class Finetuner:
    """A fine-tuning technique as the pipeline takes it.

    `train(trainable, parameters, run)` changes the trainable's module in place.
    """

    card: FinetunerCard
    parameters: type[Parameters]
    train: Callable[..., Trained]


def finetuner(
    *,
    name: str,
    title: str,
    summary: str,
    source: str,
    parameters: type[Parameters],
    produces: Literal["dense", "adapter"] = "dense",
    keeps_start: bool = False,
    version: int = 1,
) -> Callable[[Callable[..., Trained]], Finetuner]:
    """Turn `train(trainable, parameters, run)` into a fine-tuning technique with its card."""
    card = FinetunerCard(
        name=name,
        version=version,
        title=title,
        summary=summary,
        source=source,
        produces=produces,
        keeps_start=keeps_start,
        parameters=schema_of(parameters),
    )

    def decorate(function: Callable[..., Trained]) -> Finetuner:
        return Finetuner(card, parameters, function)

    return decorate
