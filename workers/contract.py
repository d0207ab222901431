"""What a merge method is: a pure function of tensors with a card.

A file of workers/methods/ holds one such function, decorated with `merge_method`. dtype, device, randomness, chunking
and disk belong to the pipeline; a method sees float32 tensors on one device and returns one.

Collect, then combine: a method that needs more than the piece at hand (a global threshold, a Gram matrix) names
statistic requests with `collect=`. The pipeline computes them in earlier passes over the merge set and hands them over
in the context.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import torch
from pydantic import JsonValue
from torch import Tensor

from app.domain.catalog import Granularity, MethodCard
from app.domain.parameters import Parameters

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
        """Return a generator keyed by (seed, purpose, model's content, tensor, offset): order and sharding do not matter.

        The draw depends on the piece's offset, so a random method must have granularity "tensor", or draw by position.
        """
        key = f"{self.seed}\0{purpose}\0{self.model_keys[model]}\0{self.tensor}\0{self.offset}"
        generator = torch.Generator()
        generator.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1)
        return generator


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

    def map(self, function: Callable[[Piece], Result]) -> Iterator[Result]:
        """Apply a pure function to every piece, on several threads, and yield the results in order of position."""


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
    collect: Callable[[Any], Sequence[StatisticRequest]] | None = None,
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
    )

    def decorate(function: Callable[..., Tensor]) -> MergeMethod:
        return MergeMethod(card, parameters, function, collect or _collect_nothing)

    return decorate


def _collect_nothing(_parameters: Parameters) -> Sequence[StatisticRequest]:
    return ()
