"""What is computed for each piece of a merge: transforms, the method with the tensor's own parameters, post-steps.

`prepare` binds a recipe to its code and a source, and collects every statistic on the way: of each transform over what
the ones before it left, of the method over each group of tensors with equal parameters, of each post-step over what is
merged so far. The program then merges any piece, on any thread; it knows nothing of files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor

from app.domain.catalog import Granularity, coarsest
from app.domain.errors import JobInternal
from app.domain.parameters import Parameters
from app.domain.recipes import Recipe
from app.domain.tensor_parameters import TensorGroup, group_tensors
from workers.checkpoints import parallel
from workers.contract import (
    Fused,
    LocalStatistic,
    MergeContext,
    MergeMethod,
    NestedMerge,
    Piece,
    PieceSource,
    PostStep,
    RandomStatistic,
    ReadUpdates,
    RecipeCode,
    Reported,
    StatisticRequest,
    Tick,
    Transform,
    ignore_tick,
    know_no_updates,
    works_on_matrices,
)
from workers.granularity import piece_shape
from workers.learning_contract import Learn, Learned
from workers.numerics import fused
from workers.patches import Measured, Patch
from workers.pipelines.group_reports import join_reports
from workers.statistics.views import ChangedSource, PartOfSource, TensorSource
from workers.stored import Models, hold, send
from workers.sums import Sums
from workers.transport import HOST, Transport

OnRequest = Callable[[StatisticRequest], None]


@dataclass(frozen=True)
class BoundMethod:
    """A method with its parameters, its statistics, and what is nested in it; satisfies contract.NestedMerge."""

    method: MergeMethod
    parameters: Parameters
    context: MergeContext  # of no tensor yet
    transport: Transport = HOST
    is_local: bool = False  # collects its statistics anew, over the tensors at hand

    @property
    def granularity(self) -> Granularity:
        """The smallest piece the method may be given."""
        return self.method.card.granularity

    def __call__(self, base: Tensor | None, finetuned: Models, context: MergeContext) -> Tensor:
        """Return the merge of a piece, in the shape of one model's piece; see contract.NestedMerge."""
        shape = tuple(finetuned.shape[1:])
        if self.is_local:
            return self._merge_locally(base, hold(finetuned), context.tensor).view(shape)
        seen = piece_shape(self.granularity, context.shape, prod(shape))
        own = replace(context, statistics=self.context.statistics, nested=self.context.nested)
        merged: Tensor = self.method.merge(
            None if base is None else base.reshape(seen),
            finetuned.reshape(len(finetuned), *seen),
            self.parameters,
            own,
        )
        return merged.reshape(shape)

    def of_piece(self, piece: Piece, tick: Tick = ignore_tick) -> Tensor:
        """Return the merge of a piece, [m] float32 on the CPU."""
        base = None if piece.base is None else self.transport.send(piece.base)
        context = replace(_placed(self.context, piece), tick=tick)
        result = self(base, send(_given(piece, self.granularity), self.transport), context)
        if result.shape != (piece.n_elements,) or result.dtype != torch.float32:
            raise JobInternal(
                f"{self.method.card.name} returned {result.dtype} {list(result.shape)} for tensor {piece.tensor!r}, "
                f"expected torch.float32 {[piece.n_elements]}; report this fault."
            )
        return self.transport.fetch(result)

    def patches_of(self, piece: Piece, tick: Tick = ignore_tick) -> Sequence[Patch]:
        """Return what turns a piece that was merged into each model's task, by a method with patches."""
        if self.method.patch is None or piece.base is None or piece.merged is None:
            raise JobInternal(f"{self.method.card.name} has no patch of tensor {piece.tensor!r}; report this fault.")
        seen = piece_shape(self.granularity, piece.shape, piece.n_elements)
        return self.method.patch(
            self.transport.send(piece.base).view(seen),
            send(_given(piece, self.granularity), self.transport).reshape(len(piece.models), *seen),
            self.transport.send(piece.merged).view(seen),
            self.parameters,
            replace(_placed(self.context, piece), tick=tick),
        )

    def sums_of(self, piece: Piece, onto: Sums | None) -> Sums | None:
        """Return the sums of a piece that its result keeps, [m] float64; None where it keeps none."""
        if self.method.sums is None or piece.base is None:
            return None
        seen = piece_shape(self.granularity, piece.shape, piece.n_elements)
        earlier = None if onto is None else onto.view(seen)
        found: Sums | None = self.method.sums(
            piece.base.view(seen),
            _given(piece, self.granularity).reshape(len(piece.models), *seen),
            self.parameters,
            _placed(self.context, piece),
            earlier,
        )
        return None if found is None else found.view((-1,))

    def _merge_locally(self, base: Tensor | None, finetuned: Tensor, name: str) -> Tensor:
        base, finetuned = None if base is None else self.transport.fetch(base), self.transport.fetch(finetuned)
        source = TensorSource(
            base=None if base is None else {name: base},
            models=[{name: tensor} for tensor in finetuned],
            weights=self.context.weights,
            piece_elements=max(1, finetuned[0].numel()),
        )
        statistics = _collect(self.method.collect(self.parameters), source, self.context)
        bound = replace(self, context=replace(self.context, statistics=statistics), is_local=False)
        return self.transport.send(bound.of_piece(source.read(name, 0, finetuned[0].numel())))


@dataclass(frozen=True)
class BoundStep:
    """A transform or a post-step with its parameters and statistics."""

    step: Transform | PostStep
    parameters: Parameters
    context: MergeContext  # of no tensor yet
    transport: Transport = HOST

    def change(self, piece: Piece) -> Piece:
        """Return the piece with other models (transform) or another result (post-step)."""
        granularity = self.step.card.granularity
        shape = piece_shape(granularity, piece.shape, piece.n_elements)
        base = None if piece.base is None else self.transport.send(piece.base).view(shape)
        finetuned = send(_given(piece, granularity), self.transport).reshape(len(piece.models), *shape)
        context = _placed(self.context, piece)
        if piece.merged is None:
            changed = self.step.apply(base, finetuned, self.parameters, context)
            return replace(piece, models=self.transport.fetch(changed).reshape(piece.models.shape))
        merged = self.transport.send(piece.merged).view(shape)
        changed = self.step.apply(base, finetuned, merged, self.parameters, context)
        return replace(piece, merged=self.transport.fetch(changed).reshape(-1))


@dataclass(frozen=True)
class ProgramGroup:
    """The method as it is bound for some tensors."""

    tensors: TensorGroup
    positions: Mapping[str, int]  # tensor -> flat index of its first element among these
    bound: BoundMethod

    @property
    def parameters(self) -> dict[str, Any]:  # of any method: JSON values by name
        """The effective parameters."""
        return self.tensors.parameters


@dataclass(frozen=True)
class MergeProgram:
    """A recipe ready to run on pieces, in any order, on any thread."""

    groups: tuple[ProgramGroup, ...]
    transforms: tuple[BoundStep, ...]
    post_steps: tuple[BoundStep, ...]
    granularity: Granularity  # of the pieces it takes: the coarsest of its parts

    def merge(self, piece: Piece, tick: Tick = ignore_tick) -> Tensor:
        """Return the merged piece, [m] float32 on the CPU. piece: as the source reads it; the method ticks."""
        changed = self.complete(self.prepare(piece), tick)
        if changed.merged is None:
            raise JobInternal(f"nothing was merged for tensor {piece.tensor!r}; report this fault.")
        return changed.merged

    def prepare(self, piece: Piece) -> Piece:
        """Return the piece as the method sees it."""
        for step in self.transforms:
            piece = step.change(piece)
        return piece

    def complete(self, piece: Piece, tick: Tick = ignore_tick) -> Piece:
        """Return a prepared piece with what was merged, post-steps included; the method ticks."""
        group = self.group_of(piece.tensor)
        placed = replace(piece, position=group.positions[piece.tensor] + piece.offset)
        piece = replace(piece, merged=group.bound.of_piece(placed, tick))
        for step in self.post_steps:
            piece = step.change(piece)
        return piece

    def sums(self, piece: Piece, onto: Sums | None = None) -> Sums | None:
        """Return the sums of a prepared piece that its result keeps, those before it included; None: it keeps none.

        Transforms and post-steps see all models at once, so that nothing can be added behind them.
        """
        if self.transforms or self.post_steps:
            return None
        group = self.group_of(piece.tensor)
        return group.bound.sums_of(replace(piece, position=group.positions[piece.tensor] + piece.offset), onto)

    def patch(self, piece: Piece, tick: Tick = ignore_tick) -> Sequence[Patch]:
        """Return, of a completed piece, what turns it into each model's task."""
        group = self.group_of(piece.tensor)
        return group.bound.patches_of(replace(piece, position=group.positions[piece.tensor] + piece.offset), tick)

    def scales(self, measured: Mapping[str, Measured]) -> dict[str, Sequence[float]]:
        """Return, of each tensor whose masks have measured, the scale of each model's."""
        found: dict[str, Sequence[float]] = {}
        for group in self.groups:
            own = [name for name in group.positions if name in measured]
            method = group.bound.method
            if own and method.scales is None:
                raise JobInternal(f"{method.card.name} makes no scales of what its masks measure; report this fault.")
            if own and method.scales is not None:
                scales = method.scales(group.bound.parameters, [measured[name] for name in own])
                found.update(dict.fromkeys(own, scales))
        return found

    @property
    def learned(self) -> Learned | None:
        """What the method's learner found, if it has run; it has run once, for all tensors."""
        found: Learned | None = self.groups[0].bound.context.learned if self.groups else None
        return found

    def report(self) -> dict[str, JsonValue]:
        """Return what the statistics have to tell, by the name of their request; of the method, one entry per group."""
        told: dict[str, JsonValue] = {}
        for step in (*self.transforms, *self.post_steps):
            told |= {f"{step.step.card.name}.{name}": value for name, value in _told(step.context).items()}
        return dict(sorted((told | join_reports([_told(group.bound.context) for group in self.groups])).items()))

    def fuse(self, tensor: str, shape: tuple[int, ...]) -> Fused | None:
        """Return how the whole of a tensor's program is computed in one go, or None where it cannot be."""
        if self.transforms or self.post_steps or not fused.is_ready():
            return None
        group = self.group_of(tensor)
        bound = group.bound
        if bound.transport is not HOST:
            return None
        context = replace(bound.context, tensor=tensor, shape=shape, offset=0, position=group.positions[tensor])
        return bound.method.fused(bound.parameters, context)

    def group_of(self, tensor: str) -> ProgramGroup:
        """Return the group that a tensor belongs to."""
        return self._group_of[tensor]

    @cached_property
    def _group_of(self) -> dict[str, ProgramGroup]:
        return {name: group for group in self.groups for name in group.positions}


def prepare(  # noqa: PLR0913 a recipe, its code, and what runs it
    recipe: Recipe,
    code: RecipeCode,
    source: PieceSource,
    *,
    transport: Transport = HOST,
    on_request: OnRequest = lambda _: None,
    learn: Learn | None = None,
    own: PieceSource | None = None,
    update_ranks: Mapping[str, Sequence[int | None]] | None = None,
    read_updates: ReadUpdates = know_no_updates,
) -> MergeProgram:
    """Bind a recipe to its code and collect all statistics; `on_request` hears of each before it is collected.

    transport: of the code that works on whole matrices; all other code runs on the CPU, by kernels where it has some,
    so that its bytes are the same wherever a job runs.
    learn: runs the method's learner, where the recipe names data to learn from. own: those tensors of the source that
    are going to be merged, if not all are: the method's local statistics are collected of them alone. update_ranks,
    read_updates: of models that are adapters, as app/domain/adapters.py and the open files tell.

    Raises: Invalid for an override that matches no tensor; whatever reading the source raises.
    """
    blank = replace(_blank_context(recipe), update_ranks=update_ranks or {}, read_updates=read_updates)
    asked = [pinned.parameters for pinned in recipe.transforms]
    transforms = _bind_transforms(list(zip(code.transforms, asked, strict=True)), source, blank, transport, on_request)
    seen = _through(source, transforms)
    names = [name for name, _, _ in source.tensors]
    is_alone = not recipe.post_steps and not code.nested  # nothing else needs what the method finds, of other tensors
    merged = _through(own, transforms) if own is not None and is_alone else seen
    groups = tuple(
        _bind_group(blank, code, group, (seen, merged), transport, on_request) for group in group_tensors(recipe, names)
    )
    if learn is not None:
        groups = tuple(_learn(group, seen, learn) for group in groups)
    granularity = coarsest([card.granularity for card in (code.method.card, *code.cards_beside)])
    program = MergeProgram(groups, transforms, (), granularity)
    for post_step, pinned in zip(code.post_steps, recipe.post_steps, strict=True):
        so_far = ChangedSource(seen, program.complete, granularity)
        bound = _bind_step(post_step, pinned.parameters, blank, transport, so_far, on_request)
        program = replace(program, post_steps=(*program.post_steps, bound))
    return program


def look_through(
    steps: Sequence[tuple[Transform, Mapping[str, Any]]],  # each with its parameters, JSON values by name
    source: PieceSource,
    *,
    model_keys: Sequence[str],
) -> PieceSource:
    """Return a source of models as transforms leave them, which a method would see; their statistics are collected."""
    blank = MergeContext("", (), 0, 0, weights=tuple(source.weights), model_keys=tuple(model_keys))
    return _through(source, _bind_transforms(steps, source, blank, HOST, lambda _: None))


def _placed(context: MergeContext, piece: Piece) -> MergeContext:
    return replace(context, tensor=piece.tensor, shape=piece.shape, offset=piece.offset, position=piece.position)


def _given(piece: Piece, granularity: Granularity) -> Models:
    """Return the models as code of a granularity is given them."""
    return piece.models if granularity == "matrix" else piece.finetuned


# --- binding ------------------------------------------------------------------------------------------------------


def _bind_group(  # noqa: PLR0913 a group, what it is bound to, and what it runs on
    blank: MergeContext,
    code: RecipeCode,
    group: TensorGroup,
    sources: tuple[PieceSource, PieceSource],  # of all tensors, and of those that are going to be merged
    transport: Transport,
    on_request: OnRequest,
) -> ProgramGroup:
    nested_cards = (one.card for one in code.nested.values())
    transport = transport if works_on_matrices(code.method.card, *nested_cards) else HOST
    part, merged = (PartOfSource(source, frozenset(group.names), group.weights) for source in sources)
    blank = replace(blank, weights=group.weights)
    validate = code.method.parameters.model_validate
    parameters = validate(group.parameters).with_models([validate(one) for one in group.of_models])
    nested: dict[str, NestedMerge] = {}
    for name, method in code.nested.items():
        is_local = code.method.card.nested[name] == "local"
        own = method.parameters.model_validate(getattr(parameters, name).parameters)
        requests = () if is_local else method.collect(own)
        statistics = _collect(requests, part, blank, on_request)
        nested[name] = BoundMethod(method, own, replace(blank, statistics=statistics), transport, is_local=is_local)
    seen = {name: nested[name] for name, scope in code.method.card.nested.items() if scope == "merge_set"}
    asked = code.method.collect(parameters, seen) if seen else code.method.collect(parameters)
    statistics = {
        name: value
        for request in asked
        for name, value in _collect((request,), merged if _is_local(request) else part, blank, on_request).items()
    }
    context = replace(blank, statistics=statistics, nested=nested)
    return ProgramGroup(group, part.positions, BoundMethod(code.method, parameters, context, transport))


def _learn(group: ProgramGroup, source: PieceSource, learn: Learn) -> ProgramGroup:
    bound = group.bound
    if len(group.tensors.names) != len(source.tensors):
        raise JobInternal(f"{bound.method.card.name} learns for all tensors at once; report this fault.")
    learned = learn(bound.method, bound.parameters, source, bound.context)
    return replace(group, bound=replace(bound, context=replace(bound.context, learned=learned)))


def _bind_transforms(
    steps: Sequence[tuple[Transform, Mapping[str, Any]]],
    source: PieceSource,
    blank: MergeContext,
    transport: Transport,
    on_request: OnRequest,
) -> tuple[BoundStep, ...]:
    """Bind transforms, the statistics of each over what the ones before it leave."""
    bound: tuple[BoundStep, ...] = ()
    for step, values in steps:
        bound = (*bound, _bind_step(step, values, blank, transport, _through(source, bound), on_request))
    return bound


def _bind_step(  # noqa: PLR0913 a step, what it is bound to, and what it runs on
    step: Transform | PostStep,
    values: Mapping[str, Any],  # JSON values by name
    blank: MergeContext,
    transport: Transport,
    source: PieceSource,
    on_request: OnRequest,
) -> BoundStep:
    parameters = step.parameters.model_validate(values)
    statistics = _collect(step.collect(parameters), source, blank, on_request)
    own = transport if works_on_matrices(step.card) else HOST
    return BoundStep(step, parameters, replace(blank, statistics=statistics), own)


def _collect(
    requests: Sequence[StatisticRequest],
    source: PieceSource,
    blank: MergeContext,
    on_request: OnRequest = lambda _: None,
) -> dict[str, Any]:  # each request's result has a type of its own
    collected: dict[str, Any] = {}
    for request in requests:
        on_request(request)
        bound = request.within(blank) if isinstance(request, RandomStatistic) else request
        collected[request.name] = bound.collect(source)
    return collected


def _is_local(request: StatisticRequest) -> bool:
    return isinstance(request, LocalStatistic) and request.is_local


def _told(context: MergeContext) -> dict[str, JsonValue]:
    return {name: value.report() for name, value in context.statistics.items() if isinstance(value, Reported)}


def _through(source: PieceSource, transforms: Sequence[BoundStep]) -> PieceSource:
    for step in transforms:
        source = ChangedSource(source, step.change, step.step.card.granularity)
    return source


def _blank_context(recipe: Recipe) -> MergeContext:
    return MergeContext(
        tensor="",
        shape=(),
        offset=0,
        position=0,
        weights=tuple(model.weight for model in recipe.models),
        seed=recipe.seed,
        model_keys=tuple(model.weights_digest for model in recipe.models),
        spread=parallel.spread,
    )
