"""The plan of any merge: of one that writes a dense model (plans.py), and of one that writes an adapter (here)."""

from collections.abc import Sequence
from math import prod

from app.domain.adapter_sets import (
    AdaptedModule,
    extracts_adapter,
    factor_names,
    gather,
    name_factors,
    writes_adapter,
)
from app.domain.adapters import Kind
from app.domain.catalog import MethodCard, StepCard
from app.domain.checkpoints import DTYPE_BYTES, OUTPUT_DTYPES, Manifest
from app.domain.errors import FieldProblem, IncompatibleCheckpoints, Invalid
from app.domain.extractions import find_extraction
from app.domain.headers import make_header
from app.domain.plans import (
    PROCESS_BYTES,
    READ_BYTES_PER_SECOND,
    WRITE_BYTES_PER_SECOND,
    WRITTEN_BESIDE_BYTES,
    MergePlan,
    PlannedFile,
    PlannedTensor,
    make_plan,
)
from app.domain.recipes import Recipe
from app.domain.tensor_parameters import TensorGroup, group_tensors

ADAPTER_FILE = "adapter_model.safetensors"
COPIES = 6  # of all factors, float32, that an adapter method holds at a time
DECOMPOSED_PER_SECOND = 2e9  # multiplications of a singular value decomposition

Sizes = tuple[str, tuple[int, ...]]  # name and shape of a tensor


def plan_merge(
    recipe: Recipe,
    base: Manifest | None,
    models: Sequence[Manifest],
    card: MethodCard,
    beside: Sequence[MethodCard | StepCard] = (),
) -> MergePlan:
    """Return the plan of a recipe.

    Raises: as plans.make_plan; for a result that is an adapter also Invalid for what such a merge cannot do, as for
        overrides and gradients over the adapted modules, each called like the base's tensor.
    """
    if not writes_adapter(recipe, card):
        return make_plan(recipe, base, models, card, beside)
    _refuse_steps(recipe, card)
    if base is None:
        message = f"{card.name} needs a base_model; name the one that the adapters lie on"
        raise IncompatibleCheckpoints(f"{message}.", errors=[FieldProblem("/base_model", message)])
    if extracts_adapter(card):
        return _plan_extraction(recipe, base, models)
    return _plan_adapters(recipe, base, models, are_factors_merged=card.produces == "dense")


def _refuse_steps(recipe: Recipe, card: MethodCard) -> None:
    """Refuse steps around what sees no merge set of the base's tensors."""
    if recipe.adapter_space == "factors" and card.produces == "dense":
        return
    for name in ("transforms", "post_steps"):
        if getattr(recipe, name):
            message = f"{name} are not possible where the result is an adapter, save in the space 'factors'"
            raise Invalid(f"/{name}: {message}.", errors=[FieldProblem(f"/{name}", message)])


def _plan_adapters(
    recipe: Recipe, base: Manifest, models: Sequence[Manifest], *, are_factors_merged: bool
) -> MergePlan:
    modules = gather(recipe, base, models)
    names = [one.tensor.name for one in modules]
    if are_factors_merged and recipe.adapter_space == "factors":
        group_tensors(recipe, [factor for name in names for factor in name_factors(name)])
        asked = {}
    else:
        asked = _asked_ranks(group_tensors(recipe, names))
    sizes: list[Sizes] = []
    for one in modules:
        rank = asked.get(one.tensor.name) or (max if recipe.adapter_space == "factors" else sum)(one.ranks)
        sizes += _factor_sizes(one.module, one.kind, rank, one.in_shape, one.n_out)
    bytes_read = sum(part.a.size_bytes + part.b.size_bytes for one in modules for part in one.parts if part is not None)
    partial = [one.module for one in modules if None in one.parts]
    warnings = [f"Some adapters leave {len(partial)} modules as they are: {', '.join(partial[:5])}."] if partial else []
    floats = sum(prod(shape) for _, shape in sizes)
    memory_bytes = (bytes_read + 4 * floats) * COPIES + _learning_bytes(recipe, base, modules)
    return _plan(recipe, sizes, bytes_read, memory_bytes=memory_bytes, warnings=warnings)


def _learning_bytes(recipe: Recipe, base: Manifest, modules: Sequence[AdaptedModule]) -> int:
    """Return what a method that learns holds: a model that runs, one that makes heads, and what adapters lie on."""
    if recipe.data is None:
        return 0
    weights = sum(tensor.n_elements for tensor in base.tensors)
    return 4 * (2 * weights + sum(one.tensor.n_elements for one in modules))


def _plan_extraction(recipe: Recipe, base: Manifest, models: Sequence[Manifest]) -> MergePlan:
    extraction = find_extraction(recipe, base, models)
    asked = _asked_ranks(extraction.groups)
    sizes: list[Sizes] = [(tensor.name, tensor.shape) for tensor in extraction.full]
    for one in extraction.modules:
        rank = min(asked[one.tensor.name], one.n_out, one.n_in)
        sizes += _factor_sizes(one.module, one.kind, rank, one.in_shape, one.n_out)
    tensors = [*(one.tensor for one in extraction.modules), *extraction.full]
    largest = max((tensor.n_elements for tensor in tensors), default=0)
    work = sum(one.n_out * one.n_in * min(one.n_out, one.n_in) for one in extraction.modules)
    held = 4 * sum(prod(shape) for _, shape in sizes)
    plan = _plan(
        recipe,
        sizes,
        2 * sum(tensor.size_bytes for tensor in tensors),
        memory_bytes=largest * 8 * COPIES + held,
        warnings=extraction.warnings,
    )
    seconds = round(plan.estimated_seconds + work / DECOMPOSED_PER_SECOND, 2)
    return plan.model_copy(update={"estimated_seconds": seconds})


def _asked_ranks(groups: Sequence[TensorGroup]) -> dict[str, int]:
    """Return the highest rank that a module of the result may have, by tensor, where its parameters say it."""
    ranks = [(group.names, group.parameters.get("rank")) for group in groups]
    return {name: rank for members, rank in ranks if isinstance(rank, int) for name in members}


def _factor_sizes(module: str, kind: Kind, rank: int, in_shape: tuple[int, ...], n_out: int) -> list[Sizes]:
    name_a, name_b = factor_names(module, kind)
    return [(name_a, (rank, *in_shape)), (name_b, (n_out, rank, *(1,) * (len(in_shape) - 1)))]


def _plan(
    recipe: Recipe, sizes: Sequence[Sizes], bytes_read: int, *, memory_bytes: int, warnings: Sequence[str]
) -> MergePlan:
    dtype = OUTPUT_DTYPES[recipe.output_dtype or "float32"]
    item = DTYPE_BYTES[dtype]
    header = make_header([(name, dtype, shape, prod(shape) * item) for name, shape in sorted(sizes)])
    tensors: list[PlannedTensor] = []
    position = len(header)
    for name, shape in sorted(sizes):
        end = position + prod(shape) * item
        tensors.append(
            PlannedTensor(name=name, dtype=dtype, shape=shape, file=ADAPTER_FILE, begin=position, end=end, source=name)
        )
        position = end
    return MergePlan(
        files=(PlannedFile(path=ADAPTER_FILE, size_bytes=position),),
        tensors=tuple(tensors),
        warnings=tuple(warnings),
        n_passes=1,
        bytes_read=bytes_read,
        bytes_written=position,
        peak_memory_bytes=PROCESS_BYTES + memory_bytes,
        disk_bytes=position + WRITTEN_BESIDE_BYTES,
        estimated_seconds=round(bytes_read / READ_BYTES_PER_SECOND + position / WRITE_BYTES_PER_SECOND, 2),
    )
