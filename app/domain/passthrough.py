"""Passthrough: which tensor of which model becomes which tensor of the result; from names and shapes alone.

The blocks of a model are numbered in its tensors' names (depth.py). Slices take runs of blocks and number them anew;
what lies outside of the blocks comes from the first slice's model if it stands before them (embeddings), else from the
last slice's (final norm, head). Without slices the first model is copied as it is.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import Field, JsonValue

from app.domain.checkpoints import MERGEABLE_DTYPES, Manifest, TensorSpec, Value
from app.domain.depth import Block, depth_of, find_blocks
from app.domain.errors import FieldProblem, IncompatibleCheckpoints, Invalid, InvalidParameters, near_match
from app.domain.parameters import Parameters

MAX_SLICES = 1000
SMALL_TOWER = 0.1  # share of the largest tower's tensors below which a run of numbers is no part of the depth


class Scaling(Parameters):
    """A factor on the tensors of a source; of two that match a tensor, the later one wins."""

    match: Annotated[str, Field(min_length=1, max_length=512, description="Glob of the tensor's name in its model.")]
    factor: float


class Source(Parameters):
    """A run of blocks of one model."""

    model: Annotated[int | str, Field(description="Index into models, or the ref that models has.")]
    layer_range: Annotated[
        list[Annotated[int, Field(ge=0, le=1_000_000)]],
        Field(min_length=2, max_length=2, description="First block, and the one behind the last."),
    ]
    scaling: Annotated[tuple[Scaling, ...], Field(max_length=100)] = ()


class Slice(Parameters):
    """A run of the result's blocks."""

    sources: Annotated[list[Source], Field(min_length=1, max_length=1)]


class PassthroughParameters(Parameters):
    """Parameters of `passthrough`."""

    slices: Annotated[
        tuple[Slice, ...],
        Field(max_length=MAX_SLICES, description="Runs of blocks, one after the other; none: models[0] as it is."),
    ] = ()
    scaling: Annotated[
        tuple[Scaling, ...],
        Field(max_length=100, description="Factors on copied tensors, by glob; those of a source come after these."),
    ] = ()


class Layer(Value):
    """A block of a model."""

    model: int
    index: int


@dataclass(frozen=True)
class Copied:
    """A tensor of the result, and the one it is a copy of."""

    name: str
    model: int
    stored: TensorSpec
    factor: float = 1.0


@dataclass(frozen=True)
class Layout:
    """A result that is put together from blocks."""

    tensors: tuple[Copied, ...]
    layers: tuple[Layer, ...]  # of the result, in order; none: a model was copied as it is
    n_layers: int  # of the model that supplies the config
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Depth:
    """A model's blocks: those of its one tower."""

    tower: str
    n_blocks: int
    blocks: Mapping[str, Block]  # of the tensors in the tower
    tensors: Mapping[str, TensorSpec]

    def of(self, index: int) -> Iterator[tuple[str, TensorSpec]]:
        """Yield the tensors of a block with their names within it."""
        for name, block in self.blocks.items():
            if block.index == index:
                yield block.suffix, self.tensors[name]


def pin_models(parameters: Mapping[str, JsonValue], refs: Sequence[str]) -> dict[str, JsonValue]:
    """Return the parameters with indices in place of refs.

    Raises: InvalidParameters for a source that names none of the models.
    """
    slices = PassthroughParameters.model_validate(dict(parameters)).slices
    faults: list[FieldProblem] = []
    pinned: list[JsonValue] = []
    for at, one in enumerate(slices):
        source = one.sources[0]
        index = source.model if isinstance(source.model, int) else _index_of(source.model, refs)
        if not 0 <= index < len(refs):
            message = (
                f"{source.model!r} is none of the {len(refs)} models; expected an index from 0, or a ref of models"
            )
            near = near_match(source.model, refs) if isinstance(source.model, str) else None
            faults.append(FieldProblem(f"/parameters/slices/{at}/sources/0/model", message, near))
        document: dict[str, Any] = source.model_dump(mode="json", exclude_defaults=True)
        pinned.append({"sources": [{**document, "model": index}]})
    if faults:
        raise InvalidParameters(f"passthrough: {faults[0].message}", errors=faults)
    return {**parameters, "slices": pinned}


def lay_out(parameters: Mapping[str, JsonValue], reference: Manifest, models: Sequence[Manifest]) -> Layout:
    """Return what is copied whence.

    Raises: IncompatibleCheckpoints for models whose blocks differ or cannot be found; Invalid for a range that a model
        does not have.
    """
    asked = PassthroughParameters.model_validate(dict(parameters))
    if not asked.slices:
        tensors = tuple(_copy(tensor.name, 0, tensor, asked.scaling) for tensor in models[0].tensors)
        unused = range(1, len(models))
        return Layout(tensors, (), 0, tuple(f"models[{index}] is not used: there are no slices." for index in unused))
    sources = [one.sources[0] for one in asked.slices]
    used = sorted({_model_of(source) for source in sources})
    depths = {index: find_depth(models[index], pointer=f"/models/{index}") for index in used}
    _check_ranges(sources, depths)
    _check_alike(depths)
    layers = [
        (Layer(model=_model_of(source), index=index), source)
        for source in sources
        for index in range(source.layer_range[0], source.layer_range[1])
    ]
    _check_first_blocks(layers, depths)
    tensors = (*_copy_blocks(layers, depths, asked.scaling), *_copy_rest(sources, depths, models, asked.scaling))
    return Layout(
        tensors=tensors,
        layers=tuple(layer for layer, _ in layers),
        n_layers=find_depth(reference, pointer="/base_model").n_blocks,
        warnings=tuple(f"models[{index}] is in no slice." for index in range(len(models)) if index not in used),
    )


def find_depth(manifest: Manifest, *, pointer: str) -> Depth:
    """Return a model's blocks.

    Raises: IncompatibleCheckpoints where no tower is found, or several are.
    """
    tensors = {tensor.name: tensor for tensor in manifest.tensors}
    blocks = find_blocks(tensors)
    count = Counter(block.tower for block in blocks.values())
    towers = sorted(tower for tower, n in count.items() if n >= SMALL_TOWER * max(count.values()))
    if len(towers) != 1:
        found = f"found {', '.join(f'{tower}.0, …' for tower in towers)}" if towers else "found none"
        message = f"expected one run of blocks that are numbered from 0 in the tensors' names, {found}"
        raise IncompatibleCheckpoints(
            f"{pointer}: {message}. Slices of layers can be taken of models with one such run.",
            errors=[FieldProblem(pointer, message)],
        )
    own = {name: block for name, block in blocks.items() if block.tower == towers[0]}
    return Depth(towers[0], next(iter(own.values())).n_blocks, own, tensors)


def check_depth(models: Sequence[Manifest], n_blocks: int) -> None:
    """Check that every model has a number of blocks.

    Raises: IncompatibleCheckpoints for one that has not.
    """
    for index, manifest in enumerate(models):
        found = find_depth(manifest, pointer=f"/models/{index}").n_blocks
        if found != n_blocks:
            message = f"models[{index}] has {found} blocks, expected n_blocks = {n_blocks}"
            raise IncompatibleCheckpoints(
                f"{message}. Only whole models are merged.", errors=[FieldProblem("/n_blocks", message)]
            )


def _model_of(source: Source) -> int:
    if not isinstance(source.model, int):
        raise TypeError(f"the source {source.model!r} was not pinned")
    return source.model


def _index_of(ref: str, refs: Sequence[str]) -> int:
    return refs.index(ref) if ref in refs else -1


def _copy_blocks(
    layers: Sequence[tuple[Layer, Source]], depths: Mapping[int, Depth], scaling: Sequence[Scaling]
) -> Iterator[Copied]:
    prefix = f"{depths[layers[0][0].model].tower}." if depths[layers[0][0].model].tower else ""
    for position, (layer, source) in enumerate(layers):
        for suffix, tensor in depths[layer.model].of(layer.index):
            yield _copy(f"{prefix}{position}.{suffix}", layer.model, tensor, [*scaling, *source.scaling])


def _copy_rest(
    sources: Sequence[Source], depths: Mapping[int, Depth], models: Sequence[Manifest], scaling: Sequence[Scaling]
) -> Iterator[Copied]:
    """Yield what lies outside of the blocks: before them from the first slice's model, behind them from the last's."""
    for source, is_first in ((sources[0], True), (sources[-1], False)):
        model = _model_of(source)
        depth = depths[model]
        before = _names_before(depth, models[_model_of(sources[0])])
        for name, tensor in depth.tensors.items():
            if name not in depth.blocks and (name in before) == is_first:
                yield _copy(name, model, tensor, [*scaling, *source.scaling])


def _names_before(depth: Depth, first: Manifest) -> set[str]:
    """Return the names that stand before the blocks; one that is tied to such a name comes with it."""
    names = {name for name in depth.tensors if name not in depth.blocks and depth_of(name, depth.blocks) == 0.0}
    for group in first.tied:
        names |= set(group) if names & set(group) else set()
    return names


def _copy(name: str, model: int, tensor: TensorSpec, scaling: Sequence[Scaling]) -> Copied:
    factors = [one.factor for one in scaling if fnmatchcase(tensor.name, one.match)]
    can_scale = tensor.dtype in MERGEABLE_DTYPES
    return Copied(name, model, tensor, factors[-1] if factors and can_scale else 1.0)


def _check_ranges(sources: Sequence[Source], depths: Mapping[int, Depth]) -> None:
    faults: list[FieldProblem] = []
    for at, source in enumerate(sources):
        begin, end = source.layer_range
        n_blocks = depths[_model_of(source)].n_blocks
        if not 0 <= begin < end <= n_blocks:
            message = f"expected a range within [0, {n_blocks}], as models[{source.model}] has {n_blocks} blocks"
            faults.append(
                FieldProblem(f"/parameters/slices/{at}/sources/0/layer_range", f"{message}; found [{begin}, {end}]")
            )
    if faults:
        raise Invalid(f"passthrough: {faults[0].pointer}: {faults[0].message}.", errors=faults)


def _check_alike(depths: Mapping[int, Depth]) -> None:
    """Refuse models whose blocks could not stand in one model: other names of tensors, or other shapes."""
    first, *others = sorted(depths)
    for index in others:
        if depths[index].tower != depths[first].tower:
            message = f"its blocks are {depths[index].tower!r}, those of models[{first}] {depths[first].tower!r}"
            raise _differ(index, message)
        mine, theirs = _shapes_of(depths[index]), _shapes_of(depths[first])
        for suffix in sorted(mine.keys() & theirs.keys()):
            if mine[suffix] != theirs[suffix]:
                found = f"shapes {sorted(mine[suffix])} in its blocks, expected {sorted(theirs[suffix])}"
                raise _differ(index, f"tensor {suffix!r} has {found} as in models[{first}]")
        missing = sorted(mine.keys() ^ theirs.keys())
        if missing:
            raise _differ(index, f"tensor {missing[0]!r} is in the blocks of only one of it and models[{first}]")


def _differ(index: int, message: str) -> IncompatibleCheckpoints:
    return IncompatibleCheckpoints(
        f"models[{index}]: {message}. Take slices of models of one architecture.",
        errors=[FieldProblem(f"/models/{index}", message)],
    )


def _shapes_of(depth: Depth) -> dict[str, set[tuple[int, ...]]]:
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for name, block in depth.blocks.items():
        shapes.setdefault(block.suffix, set()).add(depth.tensors[name].shape)
    return shapes


def _check_first_blocks(layers: Sequence[tuple[Layer, Source]], depths: Mapping[int, Depth]) -> None:
    """Refuse to move a first block that is another one: in some models it alone holds what all blocks use."""
    for position, (layer, _) in enumerate(layers):
        depth = depths[layer.model]
        own = {suffix for suffix, _ in depth.of(0)}
        elsewhere = {block.suffix for block in depth.blocks.values() if block.index > 0}
        if own - elsewhere and (position == 0) != (layer.index == 0):
            only = sorted(own - elsewhere)[0]
            message = f"only block 0 of models[{layer.model}] holds {only!r}, so it must be the first, and nowhere else"
            raise Invalid(f"passthrough: {message}.", errors=[FieldProblem("/parameters/slices", message)])
