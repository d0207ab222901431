"""What an adapter method is: a function of adapters' factors, with a card, that gives an adapter.

A file of workers/adapter_methods/ holds one such function, decorated with `adapter_method`. It is given all modules
with equal parameters at once, since adapters are small, and may hand small tensors of its own making to the dense
method that its parameter `merge` names: statistics over all of these are that method's "whole model".
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue
from torch import Tensor

from app.domain.adapters import AdapterSpace, Kind
from app.domain.catalog import MethodCard, NestedScope
from app.domain.parameters import Parameters, schema_of
from workers.contract import MergeMethod, RecipeCode
from workers.patches import LowRank

Coordinates = Mapping[str, Tensor]  # tensors by a name of the method's choice


@dataclass(frozen=True)
class Update:
    """One adapter's update of one module as it is stored: scaling · B·A."""

    a: Tensor  # [r, in] float32
    b: Tensor  # [out, r] float32
    scaling: float
    a_start: Tensor | None = None  # where a linearized training began
    b_start: Tensor | None = None


@dataclass(frozen=True)
class ModuleUpdates:
    """All adapters' updates of one module."""

    name: str  # the base's tensor
    kind: Kind
    n_out: int
    n_in: int
    updates: tuple[Update | None, ...]  # one per adapter; None: it leaves the module as it is
    is_transposed: bool = False  # the base stores [in, out]


@dataclass(frozen=True)
class Change:
    """What a dense model changes in one module."""

    matrix: Tensor  # [out, in] float64, in PEFT's orientation; a kernel's positions are columns
    rounding: float = 0.0  # the largest singular value that rounding the weights to float32 may have made


@dataclass(frozen=True)
class DenseChange:
    """A module that a dense model changes, for methods that take dense models; read when it is needed."""

    name: str  # the base's tensor
    read: Callable[[], Change]


# Merges tensors that the outer method made, around a base of zeros: one mapping per adapter, all of the same shapes.
MergeCoordinates = Callable[[Sequence[Coordinates]], dict[str, Tensor]]


def _ignore(_module: ModuleUpdates) -> None:
    """Take note of nothing."""


@dataclass(frozen=True)
class AdapterContext:
    """What an adapter method may know beside its modules."""

    weights: tuple[float, ...]  # one per adapter
    seed: int
    model_keys: tuple[str, ...]  # identity of each adapter's content; keys random draws
    merge: MergeCoordinates  # of the method that the parameter `merge` names
    coefficients: tuple[float, ...] | None = None  # of that method, if it is a linear combination
    on_module: Callable[[ModuleUpdates], None] = _ignore  # hears of each module that is done

    def each(self, modules: Sequence[ModuleUpdates]) -> Iterator[ModuleUpdates]:
        """Yield the modules one by one; each counts as done, for the progress, when the next one is asked for."""
        for module in modules:
            yield module
            self.on_module(module)


@dataclass(frozen=True)
class AdapterMethod:
    """An adapter method as the pipeline takes it."""

    card: MethodCard
    parameters: type[Parameters]
    merge: Callable[..., Mapping[str, LowRank]]  # (modules, parameters, context) -> by name of the base's tensor


@dataclass(frozen=True)
class AdapterCode:
    """The code of a recipe that gives an adapter."""

    method: AdapterMethod | MergeMethod
    dense: RecipeCode | None = None  # the method that `merge` names; else, in the space factors, the method itself


def adapter_method(
    *,
    name: str,
    title: str,
    summary: str,
    source: str,
    parameters: type[Parameters],
    adapter_spaces: tuple[AdapterSpace, ...],
    version: int = 1,
    aliases: tuple[str, ...] = (),
    models: tuple[int, int | None] = (1, None),
    weights: Literal["any", "non_negative", "unused"] = "any",
    order_matters: bool = False,
    is_random: bool = False,
    neutral_parameters: dict[str, JsonValue] | None = None,
    is_scale_equivariant: bool = True,
    accepts_dense: bool = False,
    nested: Mapping[str, NestedScope] | None = None,
) -> Callable[[Callable[..., Mapping[str, LowRank]]], AdapterMethod]:
    """Turn `merge(modules, parameters, context) -> {tensor: LowRank}` into an adapter method with its card.

    modules: a sequence of ModuleUpdates, sorted by name; with accepts_dense, of DenseChange. A module that the result
    leaves out is not adapted.
    """
    card = MethodCard(
        name=name,
        version=version,
        title=title,
        summary=summary,
        source=source,
        aliases=aliases,
        base_model="required",
        min_models=models[0],
        max_models=models[1],
        weights=weights,
        granularity="model",
        order_matters=order_matters,
        is_random=is_random,
        produces="adapter",
        accepts_adapters=True,
        accepts_dense=accepts_dense,
        adapter_spaces=adapter_spaces,
        parameters=schema_of(parameters),
        neutral_parameters=neutral_parameters,
        is_scale_equivariant=is_scale_equivariant,
        nested=dict(nested or {}),
    )

    def decorate(function: Callable[..., Mapping[str, LowRank]]) -> AdapterMethod:
        return AdapterMethod(card, parameters, function)

    return decorate
