"""The plan of a merge, from headers alone: what is merged, what is copied, where every byte of the result lies.

Serves POST /v1/plans, which must not read a weight, and the pipeline, which follows it to the letter. The layout
depends on the recipe and the reference model's tensors only: not on threads, not on how the inputs are sharded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from app.domain import estimates
from app.domain.adapters import update_ranks
from app.domain.catalog import Granularity, MethodCard, StepCard, coarsest, count_passes, count_rounds
from app.domain.checkpoints import (
    DTYPE_BYTES,
    MERGEABLE_DTYPES,
    OUTPUT_DTYPES,
    CheckpointKind,
    Manifest,
    TensorSpec,
    Value,
)
from app.domain.coefficients import COEFFICIENTS, coefficient_faults
from app.domain.errors import InvalidParameters
from app.domain.headers import make_header
from app.domain.merge_sets import CopyReason, MergeSet, find_merge_set, list_warnings
from app.domain.passthrough import Copied, Layer, lay_out
from app.domain.patches import JOINED_AT_ONCE, UpdateRanks, bound_patch_bytes
from app.domain.recipes import Recipe
from app.domain.statistics_files import is_statistics_file
from app.domain.sums import bound_sums_bytes
from app.domain.tensor_parameters import TensorGroup, group_tensors

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# What a job process costs beside the pieces it works on, and how fast it goes: measured, see benchmarks/engine.
PROCESS_BYTES = 290_000_000
STATISTICS_BYTES = 150_000_000  # while they are collected: samples and counts of a large scope
READ_BYTES_PER_SECOND = 2.2e9
WRITE_BYTES_PER_SECOND = 1.2e9
PIECE_ELEMENTS = 1 << 17
MIN_PIECE_ELEMENTS = 1 << 12
PIECES_BYTES = 1 << 24  # all models' pieces that one thread holds, float32 and the method's own copies
COPIES_PER_PIECE = 6
CORES = 2
RUNS_AT_ONCE = 5  # at most, with so many cores: some threads wait for the disk (workers/checkpoints/parallel.py)
WHOLE_TENSORS_BYTES = 1 << 31  # of whole tensors that all threads together work on, unless one takes more by itself
# What code that decomposes a matrix holds at most, as benchmarks/memory finds it, of models that are read as needed:
MATRIX_COPIES = 3  # of the tensor, float32
MATRIX_SQUARES = 12  # of its smaller side, float64; fewer on tall and wide ones, where they matter less
KEPT_TASK_VECTOR_BYTES = 1 << 30  # that a method which learns keeps in memory; the others it reads at every step
WRITTEN_BESIDE_BYTES = 65_536  # recipe.json, README.md
WRITTEN_PER_TENSOR_BYTES = 200  # the index
WRITTEN_PER_PATCHED_TENSOR_BYTES = 400  # the header of a patch


class PlannedTensor(Value):
    """One tensor of the result; `begin`/`end` are byte offsets in its file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    begin: int
    end: int
    source: str  # its name among the merged tensors: another one only for a further copy of a tied tensor
    copied_because: CopyReason | None = None  # None: it is merged
    model: int | None = None  # a copy of this model's `source`; None: of the reference's tensor of the same name
    factor: float = 1.0  # on such a copy

    @property
    def spec(self) -> TensorSpec:
        """The tensor as the result's manifest lists it."""
        return TensorSpec(
            name=self.name, dtype=self.dtype, shape=self.shape, file=self.file, begin=self.begin, end=self.end
        )


class PlannedFile(Value):
    """One weight file of the result."""

    path: str
    size_bytes: int


class WeightsPlan(Value):
    """The weight files of a checkpoint to be written."""

    files: tuple[PlannedFile, ...]
    tensors: tuple[PlannedTensor, ...]  # in the order of their bytes

    @property
    def is_sharded(self) -> bool:
        """Whether the files need an index."""
        return len(self.files) > 1

    def header(self, file: str) -> bytes:
        """Return prefix and header of one weight file."""
        return make_header([(t.name, t.dtype, t.shape, t.end - t.begin) for t in self.tensors if t.file == file])


class MergePlan(WeightsPlan):
    """Everything that is known about a merge before a weight is read."""

    warnings: tuple[str, ...]
    n_passes: int  # over the merged inputs, the merge itself included
    bytes_read: int
    bytes_written: int
    peak_memory_bytes: int
    disk_bytes: int
    estimated_seconds: float
    n_rounds: int = 0  # of statistics, before parts of it merge, as far as the cards tell
    tensor_bytes: int = 0  # held of the largest tensor at a time, where whole ones are merged
    layers: tuple[Layer, ...] = ()  # of a result put together from slices: which block of which model, in order
    n_layers: int = 0  # of the reference, in that case

    @property
    def n_merged(self) -> int:
        """How many tensors are merged."""
        return sum(tensor.copied_because is None for tensor in self.tensors)

    @property
    def n_copied(self) -> int:
        """How many tensors are copied as they are."""
        return len(self.tensors) - self.n_merged


@dataclass(frozen=True)
class _Cost:
    """What the cards of a recipe add up to."""

    n_passes: int  # over the merged inputs, the merge itself included
    granularity: Granularity
    reads_base: bool
    reads_models: bool  # a run at a time, also where whole tensors are merged


def make_plan(
    recipe: Recipe,
    base: Manifest | None,
    models: Sequence[Manifest],
    card: MethodCard,
    beside: Sequence[MethodCard | StepCard] = (),
) -> MergePlan:
    """Return the plan of a recipe; without a base model, models[0] supplies what is not merged.

    beside: the cards of what the recipe names beside its method (Catalog.cards_beside).
    Raises: IncompatibleCheckpoints naming the tensors that differ; Invalid for a glob that matches nothing, for a
        gradient without numbered blocks, or when nothing is left to merge.
    """
    if card.copies:
        return _plan_copies(recipe, base or models[0], models)
    merge_set = find_merge_set(recipe, base, models)
    groups = group_tensors(recipe, list(merge_set.merged))
    _check_coefficients(recipe, card, list(merge_set.merged))
    n_passes, n_rounds = _count_passes(recipe, card, beside)
    cost = _Cost(
        n_passes=1 + n_passes,
        granularity=coarsest([one.granularity for one in (card, *beside)]),
        reads_base=any(isinstance(one, StepCard) or one.base_model != "unused" for one in (card, *beside)),
        reads_models=card.granularity == "matrix"
        and not recipe.transforms
        and all(model.kind is CheckpointKind.DENSE for model in models),
    )
    tensor_bytes = _tensor_bytes(merge_set, card, cost)
    planned = [_plan_tensor(tensor, merge_set, recipe.output_dtype) for tensor in merge_set.reference.tensors]
    files, tensors = _lay_out(planned, recipe.shard_bytes)
    bytes_read = _bytes_read(merge_set, tensors, cost)
    ranks = known_ranks(recipe, models, base)
    bytes_beside, spooled = _bytes_beside(recipe, tensors, card, ranks)
    if recipe.data is not None and card.statistics is not None:
        bytes_beside += len(recipe.models) * _statistics_bytes(card, merge_set)
    bytes_written = sum(file.size_bytes for file in files) + bytes_beside + _companion_bytes(merge_set.reference)
    return MergePlan(
        files=files,
        tensors=tensors,
        warnings=list_warnings(merge_set, card),
        n_passes=cost.n_passes,
        n_rounds=n_rounds,
        bytes_read=bytes_read,
        bytes_written=bytes_written,
        peak_memory_bytes=PROCESS_BYTES
        + (STATISTICS_BYTES if n_passes else 0)
        + max(_piece_bytes(merge_set, cost, tensor_bytes), _learning_bytes(recipe, merge_set, card)),
        disk_bytes=bytes_written + spooled + WRITTEN_BESIDE_BYTES + len(tensors) * WRITTEN_PER_TENSOR_BYTES,
        tensor_bytes=tensor_bytes,
        estimated_seconds=round(
            bytes_read / READ_BYTES_PER_SECOND
            + bytes_written / WRITE_BYTES_PER_SECOND
            + _core_seconds(recipe, merge_set, groups, (card, beside), ranks) / CORES,
            2,
        ),
    )


def _core_seconds(
    recipe: Recipe,
    merge_set: MergeSet,
    groups: Sequence[TensorGroup],
    cards: tuple[MethodCard, Sequence[MethodCard | StepCard]],
    ranks: UpdateRanks,
) -> float:
    """Return how long one core takes over the matrices of a merge."""
    shapes = {name: tensor.shape for name, tensor in merge_set.merged.items()}
    known = {name for name, of_models in ranks.items() if None not in of_models}
    return estimates.seconds_of_work(recipe, groups, shapes, cards, known)


def _count_passes(recipe: Recipe, card: MethodCard, beside: Sequence[MethodCard | StepCard]) -> tuple[int, int]:
    """Return how often the inputs are read before they are merged, and how often for what all tensors tell together."""
    variants = [recipe.parameters, *({**recipe.parameters, **one.parameters} for one in recipe.overrides)]
    nested = sum(one.statistic_passes for one in beside if isinstance(one, MethodCard))
    steps = [one for one in beside if isinstance(one, StepCard)]
    asked = [step.parameters for step in (*recipe.transforms, *recipe.post_steps)]
    of_steps = sum(count_passes(step, [parameters]) for step, parameters in zip(steps, asked, strict=False))
    own = count_passes(card, variants)
    is_alone = not recipe.post_steps and not card.nested  # as workers/pipelines/program.py sees it
    return own + nested + of_steps, (count_rounds(card, variants) if is_alone else own) + nested + of_steps


def known_ranks(recipe: Recipe, models: Sequence[Manifest], base: Manifest | None) -> UpdateRanks:
    """Return the highest rank of each model's update of a tensor; behind transforms an update may have any."""
    return {} if recipe.transforms else update_ranks(models, base)


def _check_coefficients(recipe: Recipe, card: MethodCard, merged: Sequence[str]) -> None:
    """Refuse coefficients that are not of these tensors and models. Raises: InvalidParameters."""
    given = recipe.parameters.get(COEFFICIENTS) if card.learned == COEFFICIENTS else None
    if not isinstance(given, dict):
        return
    faults = coefficient_faults(given, merged, len(recipe.models), pointer=f"/parameters/{COEFFICIENTS}")
    if faults:
        raise InvalidParameters(f"{faults[0].pointer}: {faults[0].message}.", errors=faults)


def _plan_copies(recipe: Recipe, reference: Manifest, models: Sequence[Manifest]) -> MergePlan:
    layout = lay_out(recipe.parameters, reference, models)
    files, tensors = _lay_out(
        [_plan_copy(copied, recipe.output_dtype) for copied in layout.tensors], recipe.shard_bytes
    )
    bytes_read = sum(copied.stored.size_bytes for copied in layout.tensors)
    bytes_written = sum(file.size_bytes for file in files) + _companion_bytes(reference)
    return MergePlan(
        files=files,
        tensors=tensors,
        warnings=layout.warnings,
        n_passes=1,
        bytes_read=bytes_read,
        bytes_written=bytes_written,
        peak_memory_bytes=PROCESS_BYTES,
        disk_bytes=bytes_written + WRITTEN_BESIDE_BYTES + len(tensors) * WRITTEN_PER_TENSOR_BYTES,
        estimated_seconds=round(bytes_read / READ_BYTES_PER_SECOND + bytes_written / WRITE_BYTES_PER_SECOND, 2),
        layers=layout.layers,
        n_layers=layout.n_layers,
    )


def _plan_copy(copied: Copied, output_dtype: str | None) -> PlannedTensor:
    stored = copied.stored
    is_changed = output_dtype is not None and stored.dtype in MERGEABLE_DTYPES
    dtype = OUTPUT_DTYPES[output_dtype] if output_dtype is not None and is_changed else stored.dtype
    return PlannedTensor(
        name=copied.name,
        dtype=dtype,
        shape=stored.shape,
        file="",
        begin=0,
        end=stored.n_elements * DTYPE_BYTES[dtype],
        source=stored.name,
        copied_because="passthrough",
        model=copied.model,
        factor=copied.factor,
    )


def plan_copy(manifest: Manifest) -> WeightsPlan:
    """Return the plan of a checkpoint with the same tensors in the same files."""
    shards: dict[str, list[PlannedTensor]] = {}
    for tensor in manifest.tensors:
        planned = PlannedTensor(
            **tensor.model_dump(exclude={"file", "begin", "end"}),
            file="",
            begin=0,
            end=tensor.size_bytes,
            source=tensor.name,
        )
        shards.setdefault(tensor.file, []).append(planned)
    placed = [_place(shards[path], path) for path in sorted(shards)]
    return WeightsPlan(
        files=tuple(file for file, _ in placed), tensors=tuple(tensor for _, tensors in placed for tensor in tensors)
    )


def piece_elements(n_models: int) -> int:
    """Return how many elements of each model an element-wise method is given at a time."""
    fitting = PIECES_BYTES // (4 * COPIES_PER_PIECE * (n_models + 1))
    return max(MIN_PIECE_ELEMENTS, min(PIECE_ELEMENTS, fitting // MIN_PIECE_ELEMENTS * MIN_PIECE_ELEMENTS))


def _plan_tensor(tensor: TensorSpec, merge_set: MergeSet, output_dtype: str | None) -> PlannedTensor:
    source = merge_set.source(tensor.name)
    reason = merge_set.copied.get(source)
    dtype = OUTPUT_DTYPES[output_dtype] if output_dtype is not None and reason is None else tensor.dtype
    return PlannedTensor(
        name=tensor.name,
        dtype=dtype,
        shape=tensor.shape,
        file="",  # file and offsets follow when the shards are laid out
        begin=0,
        end=tensor.n_elements * DTYPE_BYTES[dtype],
        source=source,
        copied_because=reason,
    )


def _lay_out(
    planned: Sequence[PlannedTensor], shard_bytes: int
) -> tuple[tuple[PlannedFile, ...], tuple[PlannedTensor, ...]]:
    """Fill shards in the order of names; within a shard wide dtypes come first, so that every tensor lies aligned."""
    shards: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in sorted(planned, key=lambda tensor: tensor.name):
        if shards[-1] and filled + tensor.end > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.end
    files: list[PlannedFile] = []
    placed: list[PlannedTensor] = []
    for index, shard in enumerate(shards):
        path = WEIGHTS_FILE if len(shards) == 1 else f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        file, tensors = _place(shard, path)
        files.append(file)
        placed += tensors
    return tuple(files), tuple(placed)


def _place(shard: Sequence[PlannedTensor], path: str) -> tuple[PlannedFile, list[PlannedTensor]]:
    ordered = sorted(shard, key=lambda tensor: (-DTYPE_BYTES[tensor.dtype], tensor.name))
    position = len(make_header([(t.name, t.dtype, t.shape, t.end) for t in ordered]))
    placed: list[PlannedTensor] = []
    for tensor in ordered:
        end = position + tensor.end
        placed.append(tensor.model_copy(update={"file": path, "begin": position, "end": end}))
        position = end
    return PlannedFile(path=path, size_bytes=position), placed


def _bytes_read(merge_set: MergeSet, tensors: Sequence[PlannedTensor], cost: _Cost) -> int:
    merged = merge_set.merged
    inputs = sum(model[name].size_bytes for model in merge_set.found for name in merged)
    if merge_set.has_base and cost.reads_base:
        inputs += sum(tensor.size_bytes for tensor in merged.values())
    copied = sum(tensor.end - tensor.begin for tensor in tensors if tensor.copied_because is not None)
    return inputs * cost.n_passes + copied


def _learning_bytes(recipe: Recipe, merge_set: MergeSet, card: MethodCard) -> int:
    """Return what a method that learns holds: task vectors, and weights, gradients and one more model in float32.

    The outputs of the models' layers come on top; they depend on the batch.
    """
    if recipe.data is None:
        return 0
    weights = sum(4 * tensor.n_elements for tensor in merge_set.merged.values())
    if card.data == "gram":  # of one model, in float64
        return 2 * weights + 2 * _statistics_bytes(card, merge_set)
    if card.statistics == "mask":  # base, task vector, scores, weights and gradient of one model, and what makes heads
        return 6 * weights
    return 3 * weights + min((1 + len(recipe.models)) * weights, KEPT_TASK_VECTOR_BYTES)


def _statistics_bytes(card: MethodCard, merge_set: MergeSet) -> int:
    """Return the bytes of one model's statistics, at most: as large as its weights, or a Gram matrix per matrix."""
    if card.statistics == "mask":
        return sum(-(-tensor.n_elements // 8) for tensor in merge_set.merged.values())
    if card.data == "fisher":
        return sum(4 * tensor.n_elements for tensor in merge_set.merged.values())
    return sum(4 * tensor.shape[-1] ** 2 for tensor in merge_set.merged.values() if len(tensor.shape) == 2)


def _bytes_beside(
    recipe: Recipe, tensors: Sequence[PlannedTensor], card: MethodCard, ranks: UpdateRanks
) -> tuple[int, int]:
    """Return the most bytes of patches or sums that lie beside the weights, and those needed while they are written.

    Each file lies on the disk twice while it is joined, and some are at once; tensors that are not merged may travel in
    every patch.
    """
    merged = [tensor.spec for tensor in tensors if tensor.copied_because is None]
    header = len(tensors) * WRITTEN_PER_PATCHED_TENSOR_BYTES
    if card.patch_codec is None:
        sums = bound_sums_bytes(card, recipe, merged)
        return (sums + header, sums) if sums else (0, 0)
    n_tasks = len(recipe.models)
    copied = sum(tensor.end - tensor.begin for tensor in tensors if tensor.copied_because is not None)
    patch, spool = (
        bound_patch_bytes(card, recipe.parameters, merged, n_tasks, ranks, is_spooled=is_spooled) + copied + header
        for is_spooled in (False, True)
    )
    base = sum(tensor.size_bytes for tensor in merged) + header if card.patch_codec == "mask" else 0
    return n_tasks * patch + base, n_tasks * (spool - patch) + max(min(n_tasks, JOINED_AT_ONCE) * patch, base)


def _companion_bytes(reference: Manifest) -> int:
    weight_files = {tensor.file for tensor in reference.tensors}
    companions = (file for file in reference.files if not is_statistics_file(file.path))
    return sum(file.size_bytes for file in companions if file.path not in weight_files)


def _piece_bytes(merge_set: MergeSet, cost: _Cost, tensor_bytes: int) -> int:
    """Return what all threads hold of the tensors they work on."""
    if tensor_bytes:
        return max(tensor_bytes, min(CORES * tensor_bytes, WHOLE_TENSORS_BYTES))
    n_models = len(merge_set.found)
    largest = max(tensor.n_elements for tensor in merge_set.merged.values())
    return min(piece_elements(n_models), largest) * 4 * COPIES_PER_PIECE * (n_models + 1) * RUNS_AT_ONCE


def _tensor_bytes(merge_set: MergeSet, card: MethodCard, cost: _Cost) -> int:
    """Return what is held of the tensor of which most is, where whole ones are merged; else 0."""
    if cost.granularity in ("element", "row"):
        return 0
    n_held = 0 if cost.reads_models else len(merge_set.found)
    if cost.granularity == "matrix":
        return max(_matrix_bytes(tensor.shape, n_held) for tensor in merge_set.merged.values())
    return max(4 * tensor.n_elements * (n_held + card.working_copies) for tensor in merge_set.merged.values())


def _matrix_bytes(shape: tuple[int, ...], n_held: int) -> int:
    n_elements, height = prod(shape), shape[0] if shape else 1
    side = min(height, n_elements // max(1, height))
    return 4 * n_elements * (n_held + MATRIX_COPIES) + 8 * side**2 * MATRIX_SQUARES
