"""What a stored model is made of: files, tensors, digests; and whether models can be merged."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from math import prod
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

MANIFEST_FORMAT_VERSION = 2

# safetensors name of a dtype -> bytes per element; what we read and write
DTYPE_BYTES: dict[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8,
    "F8_E4M3": 1, "F8_E5M2": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8,
}  # fmt: skip
MERGEABLE_DTYPES = frozenset({"F16", "BF16", "F32", "F64"})
OUTPUT_DTYPES: dict[str, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # wire name -> safetensors


class CheckpointKind(StrEnum):
    """What a checkpoint holds."""

    DENSE = "dense"
    ADAPTER = "adapter"
    MULTITASK = "multitask"


class CheckpointState(StrEnum):
    """Where a checkpoint stands."""

    IMPORTING = "importing"
    READY = "ready"
    INVALID = "invalid"


class Value(BaseModel):
    """Base of the frozen values in this package: unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(Value):
    """One file of a checkpoint; `path` is relative, with forward slashes."""

    path: str
    size_bytes: int
    sha256: str


class TensorSpec(Value):
    """One tensor as its file's header describes it; `begin`/`end` are byte offsets in the file itself."""

    name: str
    dtype: str  # safetensors name: F32, BF16, I64, …
    shape: tuple[int, ...]
    file: str
    begin: int
    end: int

    @property
    def n_elements(self) -> int:
        """Number of elements; a 0-d tensor has one."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Number of bytes in the file."""
        return self.end - self.begin


class LoraConfig(Value):
    """What an adapter's config says of its weights; read by app/domain/lora_configs.py."""

    rank: int
    alpha: float
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    rank_pattern: dict[str, int] = Field(default_factory=dict)  # pattern of module paths -> rank
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    bias: str = "none"
    base_model_name: str | None = None  # as its author called it; nothing is looked up by it
    task_type: str | None = None  # which model class PEFT wraps
    base_names: dict[str, str] = Field(default_factory=dict)  # module -> its name in the base's files, where it differs


class TaskPatch(Value):
    """What turns a multitask checkpoint into the model of one task: a patch file (docs/patches.md)."""

    task: str
    file: str
    n_values: int  # numbers in it that are weights, not indices or bits
    modules: tuple[str, ...] = ()  # places of surgery modules, which run beside the weights


class Manifest(Value):
    """Everything a checkpoint is, without its weights: the one thing planning reads.

    `weights_digest` covers sorted (name, dtype, shape, BLAKE3 of the bytes), so it does not depend on sharding.
    `tensors` and `weights_digest` of a multitask checkpoint are those of the model that its tasks share.
    `tied` lists groups of names that are one tensor by the model's config; the first is stored, others may be, equal.
    """

    format_version: int = MANIFEST_FORMAT_VERSION
    kind: CheckpointKind = CheckpointKind.DENSE
    files: tuple[FileEntry, ...]  # sorted by path
    tensors: tuple[TensorSpec, ...]  # sorted by name
    weights_digest: str
    tied: tuple[tuple[str, ...], ...] = ()
    architecture: str | None = None  # config.json: architectures[0]
    model_type: str | None = None  # config.json: model_type
    vocab_size: int | None = None
    adapter: LoraConfig | None = None  # of a checkpoint of kind adapter
    patches: tuple[TaskPatch, ...] = ()  # of a multitask checkpoint, in the order of the models; imported: of the files
    patch_base: str | None = None  # the file with the base model, where patches are masks over it

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def n_parameters(self) -> int:
        """Number of stored scalars."""
        return sum(tensor.n_elements for tensor in self.tensors)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes that occur, most bytes first."""
        count: Counter[str] = Counter()
        for tensor in self.tensors:
            count[tensor.dtype] += tensor.size_bytes
        return tuple(dtype for dtype, _ in count.most_common())

    @property
    def digest(self) -> str:
        """Digest of the content as files: sha256 over the sorted (path, size, sha256)."""
        return digest_json([[file.path, file.size_bytes, file.sha256] for file in self.files])


class LocalCheckpoint(Value):
    """A checkpoint that lies in a folder of this machine, as pipelines take it."""

    id: str
    path: Path
    manifest: Manifest


def digest_json(document: object) -> str:
    """Return the sha256 (hex) of the canonical JSON: sorted keys, no spaces, UTF-8, no NaN."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_weights(tensors: Sequence[TensorSpec], blake3_of: dict[str, str]) -> str:
    """Return the weights digest from each tensor's own digest; the same for any sharding."""
    ordered = sorted(tensors, key=lambda tensor: tensor.name)
    return digest_json([[t.name, t.dtype, list(t.shape), blake3_of[t.name]] for t in ordered])


class TensorDifference(Value):
    """One tensor that keeps models from being merged."""

    name: str
    problem: str  # missing | extra | shape | dtype; adapter: one that does not fit the base, for all of its tensors
    model: int = Field(ge=0)  # index into the request's models
    expected: str | None = None
    found: str | None = None


class Compatibility(Value):
    """Whether checkpoints have the same tensors, from headers alone. dtype differences do not prevent a merge."""

    is_mergeable: bool
    n_tensors: int
    n_parameters: int
    differences: tuple[TensorDifference, ...]
    tied: tuple[tuple[str, ...], ...]
    vocab_sizes: tuple[int | None, ...]


def distinct_tensors(
    reference: Manifest, models: Sequence[Manifest]
) -> tuple[dict[str, TensorSpec], list[dict[str, TensorSpec]]]:
    """Return the reference's tensors by name, tied ones once, and each model's under the reference's names.

    A group of the reference is tied only if no model stores two of its names with different bytes.
    """
    groups = [group for group in reference.tied if all(_may_be_tied(group, model) for model in models)]
    leader = {name: group[0] for group in groups for name in group}
    expected = {tensor.name: tensor for tensor in reference.tensors if leader.get(tensor.name) in (None, tensor.name)}
    return expected, [_under_names(expected, model, leader) for model in models]


def _may_be_tied(group: Sequence[str], model: Manifest) -> bool:
    stored = {tensor.name for tensor in model.tensors} & set(group)
    return len(stored) <= 1 or any(stored <= set(tied) for tied in model.tied)


def _under_names(expected: dict[str, TensorSpec], model: Manifest, leader: dict[str, str]) -> dict[str, TensorSpec]:
    found: dict[str, TensorSpec] = {}
    for tensor in model.tensors:
        found.setdefault(leader.get(tensor.name, tensor.name), tensor)
    for group in model.tied:
        for name in group:
            if name in expected and group[0] in found:
                found.setdefault(name, found[group[0]])
    return found


def check_mergeable(reference: Manifest, models: Sequence[Manifest]) -> Compatibility:
    """Compare each model's tensors with the reference's (the base model's, else the first model's)."""
    expected, found = distinct_tensors(reference, models)
    differences: list[TensorDifference] = []
    for index, tensors in enumerate(found):
        differences += _differences(expected, tensors, index)
    blocking = [difference for difference in differences if difference.problem != "dtype"]
    return Compatibility(
        is_mergeable=not blocking,
        n_tensors=len(expected),
        n_parameters=reference.n_parameters,
        differences=tuple(differences),
        tied=reference.tied,
        vocab_sizes=(reference.vocab_size, *(model.vocab_size for model in models)),
    )


def _differences(expected: dict[str, TensorSpec], found: dict[str, TensorSpec], index: int) -> list[TensorDifference]:
    differences = [
        TensorDifference(name=name, problem="missing", model=index) for name in expected if name not in found
    ]
    for name, tensor in found.items():
        wanted = expected.get(name)
        if wanted is None:
            differences.append(TensorDifference(name=name, problem="extra", model=index))
        elif wanted.shape != tensor.shape:
            differences.append(_difference(name, "shape", index, list(wanted.shape), list(tensor.shape)))
        elif wanted.dtype != tensor.dtype:
            differences.append(_difference(name, "dtype", index, wanted.dtype, tensor.dtype))
    return sorted(differences, key=lambda difference: difference.name)


def _difference(name: str, problem: str, index: int, expected: object, found: object) -> TensorDifference:
    return TensorDifference(name=name, problem=problem, model=index, expected=str(expected), found=str(found))
