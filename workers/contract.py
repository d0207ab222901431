"""What a merge method, a transform and a post-step are: functions with a card.

A file of workers/methods/ holds one such function, decorated with `merge_method`. dtype, device, randomness, chunking
and disk belong to the pipeline; a method sees float32 tensors on one device and returns one.

A transform (workers/transforms/) changes task vectors before any method sees them; a post-step (workers/post_steps/)
changes what any method has merged.

Collect, then combine: a method that needs more than the piece at hand (a global threshold, a Gram matrix) names
statistic requests with `collect=`. The pipeline computes them in earlier passes over the merge set and hands them over
in the context.
"""

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from app.domain.adapters import AdapterSpace
from app.domain.catalog import (
    ClassesNeed,
    Granularity,
    MatrixWork,
    MethodCard,
    NestedScope,
    PatchCodec,
    Preset,
    StepCard,
    TaskAddition,
)
from app.domain.parameters import Parameters, schema_of
from workers.fusion import FLOAT32, NO_FILE, FusedMasks, FusedMerge, Rows
from workers.patches import LowRank, Measured, Patch
from workers.stored import Models, hold
from workers.sums import Sums

Result = TypeVar("Result")
Place = TypeVar("Place")
Fused = FusedMerge | FusedMasks
Tick = Callable[[float], None]  # takes the fraction, 0 to 1, of the work at hand that is done
Spread = Callable[[Sequence[Callable[[], None]]], None]  # does all of these, in any order, on any threads

# of a tensor by its name, what each model adds to it as a product in the order of the base, [rows, r] · [r, columns]
# float64, of rank 0 where that is nothing; None where it is not known as one. Empty where no model's is.
ReadUpdates = Callable[[str], Sequence[LowRank | None]]


def ignore_tick(_fraction: float) -> None:
    """Take note of nothing."""


def in_turn(works: Iterable[Callable[[], None]]) -> None:
    """Do one after the other."""
    for work in works:
        work()


def know_no_updates(_tensor: str) -> Sequence[LowRank | None]:
    """Return nothing: the models are dense, or changed before the method sees them."""
    return ()


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
    nested: Mapping[str, "NestedMerge"] = field(default_factory=dict)  # parameter -> the method it names, ready to run
    learned: Any = None  # what the method's learner found, of a type of its own; None: nothing was learned
    update_ranks: Mapping[str, Sequence[int | None]] = field(default_factory=dict)  # see app/domain/adapters.py
    read_updates: ReadUpdates = field(default=know_no_updates, compare=False, repr=False)  # of models that are adapters
    tick: Tick = field(default=ignore_tick, compare=False, repr=False)  # of this piece, where it takes long
    spread: Spread = field(default=in_turn, compare=False, repr=False)  # over threads that have nothing else to do

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
    models: Models  # [n, m] float32; of a whole tensor they may be read when they are asked for
    merged: Tensor | None = None  # [m] float32; what the method made of them, for the statistics of post-steps

    @property
    def finetuned(self) -> Tensor:
        """The models as one tensor, [n, m] float32."""
        return hold(self.models)

    @property
    def n_elements(self) -> int:
        """How many elements of each model it is."""
        return self.models.shape[1]

    @property
    def rows(self) -> Rows:
        """The same as rows, float32; where the base and the models lie in one memory, these rows do, too."""
        content, at = _lay_out([*self.finetuned] if self.base is None else [self.base, *self.finetuned])
        n_rows, n_elements = len(at), self.finetuned.shape[1]
        return Rows(
            tensor=self.tensor,
            shape=self.shape,
            offset=self.offset,
            position=self.position,
            n_elements=n_elements,
            content=content.numpy(),
            at=np.array(at, dtype=np.int64),
            kinds=np.full(n_rows, FLOAT32, dtype=np.int64),
            files=np.full(n_rows, NO_FILE, dtype=np.int64),
            places=np.zeros(n_rows, dtype=np.int64),
            has_base=self.base is not None,
        )


def _lay_out(rows: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Return bytes that hold all rows, and where each begins. rows: [m] float32 each."""
    memory = rows[0].untyped_storage()
    if all(row.is_contiguous() and row.untyped_storage().data_ptr() == memory.data_ptr() for row in rows):
        content = torch.empty(0, dtype=torch.uint8).set_(memory, 0, (memory.nbytes(),), (1,))
        return content, [row.data_ptr() - memory.data_ptr() for row in rows]
    content = torch.stack([*rows]).view(-1).view(torch.uint8)
    return content, [4 * rows[0].numel() * index for index in range(len(rows))]


class PieceSource(Protocol):
    """The merge set as a stream of pieces that can be read as often as a statistic needs."""

    @property
    def tensors(self) -> Sequence[tuple[str, tuple[int, ...], int]]:
        """(name, shape, position) of each tensor, sorted by name; positions are cumulative element counts."""

    @property
    def threads(self) -> int:
        """How many threads read at once."""

    @property
    def n_models(self) -> int:
        """How many models are merged."""

    @property
    def weights(self) -> Sequence[float]:
        """One weight per model."""

    def map(
        self,
        function: Callable[[Piece], Result],
        tensors: Container[str] | None = None,
        *,
        granularity: Granularity = "element",
    ) -> Iterator[Result]:
        """Apply a pure function to every piece, on several threads, and yield the results in order of position.

        tensors: only pieces of these; None: of all. granularity: what a piece holds at least: any run of elements,
        whole rows, or whole tensors; with "matrix", their models are read when they are asked for. The function keeps
        no view of a piece's tensors.
        """

    def map_rows(
        self,
        function: Callable[[Rows], Result],
        tensors: Container[str] | None = None,
        *,
        granularity: Granularity = "element",
    ) -> Iterator[Result]:
        """Do as `map` does with runs of elements, or of whole rows, as files hold them, for kernels."""

    def visit(
        self, function: Callable[[Place], Result], groups: Sequence[Sequence[tuple[str, Place]]]
    ) -> Sequence[Iterator[Result]]:
        """Apply a pure function to places, each within a tensor that is named; it reads there by `read` and `rows`.

        For reading a little here and there beside the passes: statistics read in no other way, so that where only
        some tensors are at hand, whoever has a tensor visits it. Each group's results come one by one, in order.
        """

    def once(self, function: Callable[[], Result]) -> Result:
        """Return what a pure function finds by reading this source: worth keeping where passes are repeated."""

    def read(self, tensor: str, offset: int, n_elements: int) -> Piece:
        """Read one run of elements of a tensor, on the caller's thread."""

    def rows(self, tensor: str, offset: int, n_elements: int) -> Rows | None:
        """Return the rows of one run, on the caller's thread, as `map_rows` would."""


def visit_in_turn(
    function: Callable[[Place], Result], groups: Sequence[Sequence[tuple[str, Place]]]
) -> Sequence[Iterator[Result]]:
    """Return the visits of a source that has all tensors at hand; see PieceSource."""
    return [(function(place) for _, place in group) for group in groups]


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


@runtime_checkable
class Reported(Protocol):
    """What a request collected, where the result of the merge shall tell of it."""

    def report(self) -> JsonValue:
        """Return what is worth knowing, as JSON."""


@runtime_checkable
class LocalStatistic(Protocol):
    """A request that may be collected tensor by tensor: what it finds of one depends on that one alone."""

    @property
    def is_local(self) -> bool:
        """Whether it is so, as the request stands."""


@runtime_checkable
class RandomStatistic(Protocol):
    """A request that draws random numbers: it learns the seed and the models' keys before it collects."""

    def within(self, context: MergeContext) -> StatisticRequest:
        """Return the request as it collects for a merge. context: of no tensor yet."""


class NestedMerge(Protocol):
    """A method that a parameter of another one names, with its own parameters and statistics."""

    @property
    def granularity(self) -> Granularity:
        """The smallest piece the method may be given."""

    def __call__(self, base: Tensor | None, finetuned: Models, context: MergeContext) -> Tensor:
        """Return the merge, in the shape of one model's piece; a method that sees whole tensors is given those.

        With scope "merge_set" the arguments are the piece that the outer method was given. With scope "local" they are
        any tensors, base [*shape], finetuned [n, *shape]: a model of one tensor.
        """

    def of_piece(self, piece: Piece) -> Tensor:
        """Return the merge of a piece of the merge set, [m] float32."""


@dataclass(frozen=True)
class Learning:
    """How a method learns: from what, by what, and which parameter takes what was learned before."""

    learn: Callable[..., Any]  # (parameters, session) -> Learned; see workers/learning_contract.py
    data: Literal["unlabelled", "labelled", "gram", "fisher"]
    parameter: str | None = None  # given in a request, nothing is learned
    data_of: Literal["models", "merge"] = "models"
    statistics: str | None = None  # kind of the files that it learns, one per model; given, nothing is learned
    needs_classes: ClassesNeed | None = None  # where it looks at probabilities of classes, and why
    reads: tuple[str, ...] | None = None  # the parameters that such statistics depend on; None: all


@dataclass(frozen=True)
class MergeMethod:
    """A method as the pipeline takes it: card, parameters class, and its functions."""

    card: MethodCard
    parameters: type[Parameters]
    merge: Callable[..., Tensor]
    collect: Callable[..., Sequence[StatisticRequest]]  # of the method's own parameters class, and of what is nested
    fused: Callable[[Any, MergeContext], Fused | None]  # of parameters and a context whose piece is a whole tensor
    patch: Callable[..., Sequence[Patch]] | None = None  # of a method that produces a multitask artifact
    scales: Callable[[Any, Sequence[Measured]], Sequence[float]] | None = None  # of masks that have none yet
    coefficients: Callable[..., Sequence[float]] | None = None  # of the task vectors, if it is a linear combination
    sums: Callable[..., Sums | None] | None = None  # of a method whose result keeps them
    learn: Callable[..., Any] | None = None  # workers/learning_contract.py: Learner, of a method that looks at data
    reads: tuple[str, ...] | None = None  # see Learning


@dataclass(frozen=True)
class Transform:
    """A change of the task vectors that stands before any method."""

    card: StepCard
    parameters: type[Parameters]
    apply: Callable[..., Tensor]  # (base, finetuned, parameters, context) -> finetuned
    collect: Callable[[Any], Sequence[StatisticRequest]]


@dataclass(frozen=True)
class PostStep:
    """A change of the merged task vector that stands behind any method."""

    card: StepCard
    parameters: type[Parameters]
    apply: Callable[..., Tensor]  # (base, finetuned, merged, parameters, context) -> merged
    collect: Callable[[Any], Sequence[StatisticRequest]]  # its sources' pieces hold what was merged


@dataclass(frozen=True)
class RecipeCode:
    """The code that a recipe names."""

    method: MergeMethod
    nested: Mapping[str, MergeMethod] = field(default_factory=dict)  # parameter -> the method it names
    transforms: tuple[Transform, ...] = ()
    post_steps: tuple[PostStep, ...] = ()

    @property
    def uses_base(self) -> bool:
        """Whether the base model's weights are read; steps change task vectors, so they need it."""
        has_steps = bool(self.transforms or self.post_steps)
        return has_steps or any(one.card.base_model != "unused" for one in (self.method, *self.nested.values()))

    @property
    def cards_beside(self) -> tuple[MethodCard | StepCard, ...]:
        """The cards of what sees the merge set beside the method: it decides passes, and what a piece must hold."""
        nested = [method.card for name, method in self.nested.items() if self.method.card.nested[name] == "merge_set"]
        return (*nested, *(step.card for step in self.transforms), *(step.card for step in self.post_steps))

    @property
    def uses_device(self) -> bool:
        """Whether any of it runs on the worker's device."""
        return works_on_matrices(self.method.card, *(one.card for one in self.nested.values()), *self.cards_beside)


def works_on_matrices(*cards: MethodCard | StepCard) -> bool:
    """Tell whether any of some code works on whole matrices, for which a device pays; all else waits for memory."""
    return any(card.granularity == "matrix" for card in cards)


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
    working_copies: int = 4,
    weights: Literal["any", "non_negative", "unused"] = "any",
    order_matters: bool = False,
    is_random: bool = False,
    neutral_parameters: dict[str, JsonValue] | None = None,
    is_scale_equivariant: bool = True,
    counts_copies_as_one: bool = True,
    statistic_passes: int = 0,
    spared_passes: tuple[dict[str, JsonValue], ...] = (),
    local_where: tuple[dict[str, JsonValue], ...] = (),
    copies: bool = False,
    nested: Mapping[str, NestedScope] | None = None,
    collect: Callable[..., Sequence[StatisticRequest]] | None = None,
    fused: Callable[[Any, MergeContext], Fused | None] | None = None,
    patch: Callable[..., Sequence[Patch]] | None = None,
    scales: Callable[[Any, Sequence[Measured]], Sequence[float]] | None = None,
    patch_codec: PatchCodec | None = None,
    task_addition: TaskAddition | None = None,
    per_model: tuple[str, ...] = (),
    coefficients: Callable[..., Sequence[float]] | None = None,
    sums: Callable[..., Sums | None] | None = None,
    learning: Learning | None = None,
    presets: Mapping[str, Preset] | None = None,
    accepts_dense: bool = True,
    adapter_spaces: tuple[AdapterSpace, ...] | None = None,
    work: tuple[MatrixWork, ...] = (),
) -> Callable[[Callable[..., Tensor]], MergeMethod]:
    """Turn `merge(base, finetuned, parameters, context) -> Tensor` into a method with its card.

    The function is given, by granularity: "element": base [m], finetuned [n, m], any run of one tensor's elements;
    "row": base [rows, width], whole rows along the last axis (a tensor of fewer than 2 dimensions is one row);
    "tensor", "matrix": base [*shape], finetuned [n, *shape]. All float32; base is None where no base model is given.
    A "matrix" method's finetuned models may be `StoredModels`, of which it holds what it asks for, so that the largest
    tensor of all models need not fit into memory. It returns the merged piece in the shape of one model's piece, and
    changes none of its arguments.

    working_copies: of the largest tensor, where a method sees whole ones, as float32: the base's, the result's and
    what it works on, beside one per model. benchmarks/memory counts them.

    statistic_passes: how often `collect` reads the inputs at most; spared_passes: each names parameters whose values
    spare it one of these passes; local_where: parameters whose values make all its statistics local (LocalStatistic).

    nested: parameters of type NestedMethod; `context.nested` holds the methods they name, and `collect`, which else
    takes the parameters alone, takes the mapping of those with scope "merge_set" as a second argument.

    fused: returns, from parameters and the context of a whole tensor, how the same is computed in one go, bit for bit,
    or None where it cannot be; `FusedMasks` where the method makes patches.

    patch: `patch(base, finetuned, shared, parameters, context) -> Sequence[Patch]` makes the result a multitask
    artifact: `merge` gives the model that all tasks share, and `patch`, of the same piece and what was merged of it,
    what turns that into each model's task. The patches of a tensor's pieces are of one kind; `patch_codec` names the
    kind that most tensors have. Masks lie over the base model, which the artifact then holds too.
    scales: of masks without a scale: `scales(parameters, tensors) -> Sequence[float]` returns one per model, once all
    tensors with these parameters are merged, from what the masks have measured of each.

    task_addition: what each model adds does not depend on the others, so that models can be added to a result: a dense
    one is a sum over the models, or a quotient of two, or the patches apply to what stays as it is.
    per_model: parameters of which a model may have its own: `parameters.of(model)` has them.
    coefficients: (parameters, weights) -> one number per model, of a method that is a linear combination of task
    vectors; it may then name the adapter space "concat".
    sums: `sums(base, finetuned, parameters, context, onto) -> Sums | None`: the result is the base plus their quotient,
    and keeps them, `onto` being those of the models before; None where the parameters say not to keep them.
    learning: how a method that looks at data learns before it merges; without data `context.learned` is None.
    presets: what some of the aliases say beside the name.
    adapter_spaces: default: delta and factors; delta alone for a multitask artifact.
    work: what it computes of a matrix, where that takes longer than reading it.
    """
    default: tuple[AdapterSpace, ...] = ("delta", "factors") if patch is None else ("delta",)
    spaces = default if adapter_spaces is None else adapter_spaces
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
        working_copies=working_copies,
        order_matters=order_matters,
        is_random=is_random,
        parameters=schema_of(parameters),
        neutral_parameters=neutral_parameters,
        is_scale_equivariant=is_scale_equivariant,
        counts_copies_as_one=counts_copies_as_one,
        statistic_passes=statistic_passes,
        spared_passes=spared_passes,
        local_where=local_where,
        accepts_adapters=bool(spaces),
        accepts_dense=accepts_dense,
        adapter_spaces=spaces,
        copies=copies,
        nested=dict(nested or {}),
        presets=dict(presets or {}),
        data="none" if learning is None else learning.data,
        data_of="models" if learning is None else learning.data_of,
        learned=None if learning is None else learning.parameter,
        statistics=None if learning is None else learning.statistics,
        needs_classes=None if learning is None else learning.needs_classes,
        produces="dense" if patch is None else "multitask",
        patch_codec=patch_codec,
        task_addition=task_addition,
        per_model=per_model,
        work=work,
    )

    def decorate(function: Callable[..., Tensor]) -> MergeMethod:
        return MergeMethod(
            card,
            parameters,
            function,
            collect or _collect_nothing,
            fused or _fuse_nothing,
            patch,
            scales,
            coefficients,
            sums,
            None if learning is None else learning.learn,
            None if learning is None else learning.reads,
        )

    return decorate


def transform(
    *,
    name: str,
    title: str,
    summary: str,
    source: str,
    parameters: type[Parameters],
    granularity: Granularity,
    version: int = 1,
    statistic_passes: int = 0,
    spared_passes: tuple[dict[str, JsonValue], ...] = (),
    collect: Callable[[Any], Sequence[StatisticRequest]] | None = None,
) -> Callable[[Callable[..., Tensor]], Transform]:
    """Turn `apply(base, finetuned, parameters, context) -> finetuned` into a transform with its card.

    It is given what a method of its granularity is given, base model included, and returns the models that the method
    shall see, [n, *shape] float32: the base plus the changed task vectors.
    """
    card = StepCard(
        name=name, version=version, title=title, summary=summary, source=source, granularity=granularity,
        parameters=schema_of(parameters), statistic_passes=statistic_passes, spared_passes=spared_passes,
    )  # fmt: skip

    def decorate(function: Callable[..., Tensor]) -> Transform:
        return Transform(card, parameters, function, collect or _collect_nothing)

    return decorate


def post_step(
    *,
    name: str,
    title: str,
    summary: str,
    source: str,
    parameters: type[Parameters],
    granularity: Granularity,
    version: int = 1,
    statistic_passes: int = 0,
    spared_passes: tuple[dict[str, JsonValue], ...] = (),
    work: tuple[MatrixWork, ...] = (),
    collect: Callable[[Any], Sequence[StatisticRequest]] | None = None,
) -> Callable[[Callable[..., Tensor]], PostStep]:
    """Turn `apply(base, finetuned, merged, parameters, context) -> merged` into a post-step with its card.

    It is given what a method of its granularity is given, what the method made of it, [*shape], and returns what shall
    stand in its place, [*shape] float32.
    """
    card = StepCard(
        name=name, version=version, title=title, summary=summary, source=source, granularity=granularity,
        parameters=schema_of(parameters), statistic_passes=statistic_passes, spared_passes=spared_passes, work=work,
    )  # fmt: skip

    def decorate(function: Callable[..., Tensor]) -> PostStep:
        return PostStep(card, parameters, function, collect or _collect_nothing)

    return decorate


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def _collect_nothing(*_: object) -> Sequence[StatisticRequest]:
    return ()


def _fuse_nothing(_parameters: Parameters, _context: MergeContext) -> None:
    return None
