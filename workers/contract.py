"""What a merge method, an evaluator and a fine-tuner are: functions with a card.

A file of workers/methods/ holds one such function, decorated with `merge_method`. dtype, device, randomness, chunking
and disk belong to the pipeline; a method sees float32 tensors on one device and returns one.

An evaluator (workers/evaluators/) measures a checkpoint on tasks of one kind, and says how such a task is trained on; a
fine-tuner (workers/finetuning/) trains whatever an evaluator hands it.

Collect, then combine: a method that needs more than the piece at hand (a global threshold, a Gram matrix) names
statistic requests with `collect=`. The pipeline computes them in earlier passes over the merge set and hands them over
in the context.
"""

import hashlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import torch
from pydantic import JsonValue
from torch import Tensor

from app.domain.adapters import AdapterSpace
from app.domain.catalog import EvaluatorCard, FinetunerCard, Granularity, MethodCard
from app.domain.checkpoints import LocalCheckpoint
from app.domain.parameters import Parameters
from app.domain.tasks import LocalTask, Measurement

Result = TypeVar("Result")


@dataclass(frozen=True)
class MergeContext:
    """What a method may know beside its tensors: where the piece lies, the weights, the statistics."""

    tensor: str  # name of the tensor
    shape: tuple[int, ...]  # of the whole tensor
    offset: int  # flat index, within the tensor, of the piece's first element
    position: int  # flat index of the same element within the whole merge set (tensors in order of their names)
    weights: tuple[float, ...]  # one per model
    seed: int = 0
    model_keys: tuple[str, ...] = ()  # identity of each model's content; keys random draws
    statistics: Mapping[str, Any] = field(default_factory=dict)  # request name -> what it collected

    def random(self, purpose: str, model: int) -> torch.Generator:
        """Return a generator keyed by (seed, purpose, model content, tensor, offset), whatever the order and sharding.

        The draw depends on the piece's offset, so a random method must have granularity "tensor", or draw by position
        with `random_key`.
        """
        generator = torch.Generator()
        generator.manual_seed(_digest(f"{self._key(purpose, model)}\0{self.offset}") >> 1)
        return generator

    def random_key(self, purpose: str, model: int) -> int:
        """Return a 64-bit key of (seed, purpose, model's content, tensor), for draws that depend on position alone."""
        return _digest(self._key(purpose, model))

    def _key(self, purpose: str, model: int) -> str:
        return f"{self.seed}\0{purpose}\0{self.model_keys[model]}\0{self.tensor}"


@dataclass(frozen=True)
class Piece:
    """A run of elements of one tensor, read from the base and all models."""

    tensor: str
    shape: tuple[int, ...]  # of the whole tensor
    offset: int  # flat index within the tensor
    position: int  # flat index within the merge set
    base: Tensor | None  # [m] float32
    finetuned: Tensor  # [n, m] float32


class PieceSource(Protocol):
    """The merge set as a stream of pieces that can be read as often as a statistic needs."""

    @property
    def tensors(self) -> Sequence[tuple[str, tuple[int, ...], int]]:
        """(name, shape, position) of each tensor, sorted by name; positions are cumulative element counts."""

    @property
    def n_models(self) -> int:
        """How many models are merged."""

    @property
    def weights(self) -> Sequence[float]:
        """One weight per model."""

    def map(self, function: Callable[[Piece], Result], tensors: Container[str] | None = None) -> Iterator[Result]:
        """Apply a pure function to every piece, on several threads, and yield the results in order of position.

        tensors: only pieces of these; None: of all. The function keeps no view of a piece's tensors.
        """

    def read(self, tensor: str, offset: int, n_elements: int) -> Piece:
        """Read one run of elements of a tensor, on the caller's thread."""


class StatisticRequest(Protocol):
    """A statistic over the whole merge set: a frozen value that knows how to collect itself."""

    @property
    def name(self) -> str:
        """Key under which the context holds the result."""

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set; the plan counts them."""

    def collect(self, source: PieceSource) -> Any:  # each statistic has a type of its own
        """Read the source and return the statistic."""


@dataclass(frozen=True)
class MergeMethod:
    """A method as the pipeline takes it: card, parameters class, and the two functions."""

    card: MethodCard
    parameters: type[Parameters]
    merge: Callable[..., Tensor]
    collect: Callable[[Any], Sequence[StatisticRequest]]  # of the method's own parameters class


def merge_method(
    *,
    name: str,
    title: str,
    summary: str,
    source: str,
    parameters: type[Parameters],
    base_model: Literal["required", "optional", "unused"],
    models: tuple[int, int | None],
    granularity: Granularity,
    version: int = 1,
    aliases: tuple[str, ...] = (),
    weights: Literal["any", "non_negative", "unused"] = "any",
    order_matters: bool = False,
    is_random: bool = False,
    neutral_parameters: dict[str, JsonValue] | None = None,
    is_scale_equivariant: bool = True,
    statistic_passes: int = 0,
    collect: Callable[[Any], Sequence[StatisticRequest]] | None = None,
    accepts_dense: bool = True,
    adapter_spaces: tuple[AdapterSpace, ...] = ("delta", "factors"),
) -> Callable[[Callable[..., Tensor]], MergeMethod]:
    """Turn `merge(base, finetuned, parameters, context) -> Tensor` into a method with its card.

    The function is given, by granularity: "element": base [m], finetuned [n, m], any run of one tensor's elements;
    "row": base [rows, width], whole rows along the last axis (a tensor of fewer than 2 dimensions is one row);
    "tensor", "matrix": base [*shape], finetuned [n, *shape]. All float32; base is None where no base model is given.
    It returns the merged piece in the shape of one model's piece, and changes none of its arguments.
    """
    card = MethodCard(
        name=name,
        version=version,
        title=title,
        summary=summary,
        source=source,
        aliases=aliases,
        base_model=base_model,
        min_models=models[0],
        max_models=models[1],
        weights=weights,
        granularity=granularity,
        order_matters=order_matters,
        is_random=is_random,
        parameters=parameters.model_json_schema(),
        neutral_parameters=neutral_parameters,
        is_scale_equivariant=is_scale_equivariant,
        statistic_passes=statistic_passes,
        accepts_adapters=bool(adapter_spaces),
        accepts_dense=accepts_dense,
        adapter_spaces=adapter_spaces,
    )

    def decorate(function: Callable[..., Tensor]) -> MergeMethod:
        return MergeMethod(card, parameters, function, collect or _collect_nothing)

    return decorate


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def _collect_nothing(_parameters: Parameters) -> Sequence[StatisticRequest]:
    return ()


class ModelSource(Protocol):
    """Runnable models of one job: each checkpoint is loaded once (workers/checkpoints/model.py)."""

    @property
    def device(self) -> torch.device:
        """Where the models lie."""

    def encoder(self, checkpoint: LocalCheckpoint) -> Any:
        """Return the checkpoint's encoder, in evaluation mode."""

    def classifier(self, checkpoint: LocalCheckpoint) -> Any:
        """Return the checkpoint's model with its own classification head, in evaluation mode."""


@dataclass(frozen=True)
class Subject:
    """What is measured or trained: a checkpoint on a task, under a head made with a base model."""

    task: LocalTask
    checkpoint: LocalCheckpoint
    base_model: LocalCheckpoint


@dataclass(frozen=True)
class Trainable:
    """A task as a fine-tuner sees it: a model, and its loss on any batch of training examples."""

    module: torch.nn.Module  # the encoder whose parameters may be trained; in evaluation mode, so without dropout
    embeddings: frozenset[str]  # names of the parameters that embed the input
    n_examples: int
    loss: Callable[[Sequence[int]], Tensor]  # indices of training examples -> mean loss, 0-d, with its graph


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
    make_trainable: MakeTrainable | None = None,
) -> Callable[[Measure], Evaluator]:
    """Turn `measure(subject, split, models, on_examples)` into an evaluator with its card.

    `parameters` is the form of a task's `preprocessing`; the evaluator's name is the `kind` of the tasks it measures.
    """
    card = EvaluatorCard(
        name=name,
        version=version,
        title=title,
        summary=summary,
        source=source,
        heads=heads,
        metrics=metrics,
        parameters=parameters.model_json_schema(),
    )

    def decorate(function: Measure) -> Evaluator:
        return Evaluator(card, parameters, function, make_trainable)

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
        parameters=parameters.model_json_schema(),
    )

    def decorate(function: Callable[..., frozenset[str]]) -> Finetuner:
        return Finetuner(card, parameters, function)

    return decorate
