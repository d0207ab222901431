"""Patches of a multitask artifact: where they lie, what they are called, and how large they become at most.

The file format is docs/patches.md; the codecs are workers/patches.py.
"""

from collections.abc import Mapping, Sequence
from math import floor

from pydantic import Field, JsonValue

from app.domain.catalog import MethodCard
from app.domain.checkpoints import DTYPE_BYTES, Manifest, TensorSpec, Value

PATCH_FORMAT = "amalgam-patch"
PATCH_FORMAT_VERSION = (
    3  # with bits for indices, 2 with modules; a patch is written as the first version that has all of it
)
PATCH_FOLDER = "patches"
BASE_FILE = "base.safetensors"
DENSE_RANK = 16  # that low-rank patches have where none is asked for,
ADAPTER_SHARE = 4  # and of an adapter one part in four of its own rank
JOINED_AT_ONCE = 2  # files of patches, each of which lies on the disk twice meanwhile
LARGEST_INT32 = 2**31 - 1  # an index above is spooled as int64
MODULE_BYTES = DTYPE_BYTES["F32"]  # of a number in a surgery module


UpdateRanks = Mapping[str, Sequence[int | None]]  # as adapters.update_ranks


def patch_path(task: str) -> str:
    """Return the path of a task's patch within its artifact."""
    return f"{PATCH_FOLDER}/{task}.safetensors"


class PatchStorage(Value):
    """What one task's patch takes."""

    task: str
    file: str
    size_bytes: int
    n_values: int = Field(description="Numbers in it that are weights, not indices or bits.")


class MultitaskStorage(Value):
    """What a multitask checkpoint's weights take, against one dense model for each task."""

    n_tasks: int
    stored_bytes: int = Field(
        description="Of the shared model, the patches, and the base model where masks lie over it."
    )
    separate_bytes: int = Field(description="Of one dense model per task.")
    byte_ratio: float | None = Field(description="Every stored byte: weights, indices, bits and headers.")
    parameter_ratio: float | None = Field(description="Weights alone, as papers count.")
    patches: tuple[PatchStorage, ...]


def measure_storage(manifest: Manifest) -> MultitaskStorage:
    """Return what a multitask checkpoint's weights take."""
    sizes = {file.path: file.size_bytes for file in manifest.files}
    dense_bytes = sum(tensor.size_bytes for tensor in manifest.tensors)
    dense_values = manifest.n_parameters * (1 if manifest.patch_base is None else 2)
    shared = {tensor.file for tensor in manifest.tensors} | ({manifest.patch_base} if manifest.patch_base else set())
    n_tasks = len(manifest.patches)
    stored_bytes = sum(sizes[path] for path in shared) + sum(sizes[patch.file] for patch in manifest.patches)
    stored_values = dense_values + sum(patch.n_values for patch in manifest.patches)
    return MultitaskStorage(
        n_tasks=n_tasks,
        stored_bytes=stored_bytes,
        separate_bytes=n_tasks * dense_bytes,
        byte_ratio=_ratio(stored_bytes, n_tasks * dense_bytes),
        parameter_ratio=_ratio(stored_values, n_tasks * manifest.n_parameters),
        patches=tuple(
            PatchStorage(task=patch.task, file=patch.file, size_bytes=sizes[patch.file], n_values=patch.n_values)
            for patch in manifest.patches
        ),
    )


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None


def default_rank(known: int | None) -> int:
    """Return the rank that is kept of a model's matrix where none is asked for.

    known: the highest that its update can have, where the model is an adapter.
    """
    return DENSE_RANK if known is None else max(1, known // ADAPTER_SHARE)


def bound_patch_bytes(  # noqa: PLR0913 (what a patch is made of, and when it is measured)
    card: MethodCard,
    parameters: Mapping[str, JsonValue],
    tensors: Sequence[TensorSpec],
    n_tasks: int,
    ranks: UpdateRanks,
    *,
    is_spooled: bool = False,
) -> int:
    """Return the most bytes that one task's patch of these tensors takes, headers aside; 0 for a dense result.

    is_spooled: while it is written, when indices that will be bits still are indices.
    """
    if card.patch_codec is None:
        return 0
    if card.patch_codec == "module":  # two matrices as wide as a block, which holds several square ones
        matrices = [tensor for tensor in tensors if len(tensor.shape) == 2]
        return sum(_rank(parameters, tensor, n_tasks, ()) * sum(tensor.shape) * MODULE_BYTES for tensor in matrices)
    if card.patch_codec == "replacement":
        return sum(_bound_replacements(parameters, tensor, is_spooled=is_spooled) for tensor in tensors)
    return sum(_bound(card, parameters, tensor, n_tasks, ranks.get(tensor.name, ())) for tensor in tensors)


def _bound_replacements(parameters: Mapping[str, JsonValue], tensor: TensorSpec, *, is_spooled: bool) -> int:
    density, n = parameters.get("density"), tensor.n_elements
    kept = n if not isinstance(density, float) else min(n, floor(density * n) + 1)
    values = kept * DTYPE_BYTES[tensor.dtype]
    # in global scope a tensor may hold more than its share, and others then hold less: the sum is the same
    if kept == n:
        return values
    indices = kept * (8 if n > LARGEST_INT32 else 4)
    return values + (indices if is_spooled else min(indices, -(-n // 8)))


def _bound(
    card: MethodCard,
    parameters: Mapping[str, JsonValue],
    tensor: TensorSpec,
    n_tasks: int,
    ranks: Sequence[int | None],
) -> int:
    item, n = DTYPE_BYTES[tensor.dtype], tensor.n_elements
    whole = n * item
    if card.patch_codec in ("mask", "sign"):
        return -(-n // 8) if card.patch_codec == "mask" or len(tensor.shape) > 1 else whole
    is_matrix = len(tensor.shape) == 2
    return min(whole, _rank(parameters, tensor, n_tasks, ranks) * sum(tensor.shape) * item) if is_matrix else whole


def _rank(parameters: Mapping[str, JsonValue], tensor: TensorSpec, n_tasks: int, ranks: Sequence[int | None]) -> int:
    rank, fraction = parameters.get("rank"), parameters.get("rank_fraction")
    if isinstance(rank, int):
        return rank
    if "rank" in parameters:
        return max(map(default_rank, ranks or (None,)))
    return max(1, floor(min(tensor.shape) * (fraction if isinstance(fraction, float) else 1 / n_tasks)))
