"""What a user asks for, pinned: method, inputs by content, parameters, seed, output. Equal digests give equal bytes."""

from typing import Literal

from pydantic import Field, JsonValue

from app.domain.adapters import AdapterSpace
from app.domain.checkpoints import LocalCheckpoint, Value, digest_json

RECIPE_FORMAT_VERSION = 1
ENGINE_VERSION = 1  # raised whenever the engine writes other bytes for the same recipe

NanPolicy = Literal["fail", "zero"]
TensorPolicy = Literal["strict", "intersection"]


class PinnedCheckpoint(Value):
    """An input by its content: no id, no name, so that equal recipes are equal files."""

    content_digest: str  # Manifest.digest: all files, config and tokenizer included
    weights_digest: str


def pin(checkpoint: LocalCheckpoint) -> PinnedCheckpoint:
    """Return a checkpoint as recipes name it."""
    manifest = checkpoint.manifest
    return PinnedCheckpoint(content_digest=manifest.digest, weights_digest=manifest.weights_digest)


class RecipeModel(PinnedCheckpoint):
    """One model to merge. `task` labels its patch in a multitask artifact."""

    weight: float = 1.0
    task: str | None = None
    parameters: dict[str, JsonValue] = Field(default_factory=dict)


class Override(Value):
    """Parameters and weights of the tensors that a glob matches; of two overrides the later one wins.

    `models` holds what each model has of its own there, as `models[].parameters` does everywhere.
    """

    match: str
    parameters: dict[str, JsonValue] = Field(default_factory=dict)  # those that differ
    weights: tuple[float | tuple[float, ...] | None, ...] | None = None  # one per model: a gradient; None: left as is
    models: tuple[dict[str, JsonValue] | None, ...] | None = None  # one per model; None: left as is


class PinnedStep(Value):
    """A transform or a post-step with its effective parameters."""

    name: str
    version: int
    parameters: dict[str, JsonValue]


class PinnedTask(Value):
    """A task that a method learns on, by its content, and the base model behind its head, where it needs one."""

    digest: str  # TaskSpec.digest
    head_base_model: PinnedCheckpoint | None = None


class RecipeData(Value):
    """What a method that learns looks at."""

    split: str
    max_examples: int | None = None  # of each task, drawn by the seed; None: all
    tasks: tuple[PinnedTask, ...]  # one per model, in the models' order, or those that the whole merge is tried on
    transductive: bool = False  # the split is `test`: numbers measured there later are of inputs seen before


class Recipe(Value):
    """A merge, complete: everything that decides the bytes of the result, and nothing else."""

    format_version: int = RECIPE_FORMAT_VERSION
    engine_version: int = ENGINE_VERSION
    method: str
    method_version: int
    base_model: PinnedCheckpoint | None = None
    models: tuple[RecipeModel, ...]
    parameters: dict[str, JsonValue]  # effective: defaults filled in; a number may be a gradient over the depth
    seed: int = 0
    output_dtype: str | None = None  # float32 | float16 | bfloat16; None: each tensor keeps the base's
    shard_bytes: int
    include: tuple[str, ...] = ()  # globs of tensor names; empty: all
    exclude: tuple[str, ...] = ()
    nan_policy: NanPolicy = "fail"
    tensors: TensorPolicy = "strict"
    adapter_space: AdapterSpace | None = None  # where adapters are merged; None: no model is one, or parameters say it
    merge_buffers: bool = True  # floating BatchNorm buffers are merged like weights
    overrides: tuple[Override, ...] = ()
    transforms: tuple[PinnedStep, ...] = ()  # of the task vectors, before the method, in this order
    post_steps: tuple[PinnedStep, ...] = ()  # of the merged task vector, after the method, in this order
    data: RecipeData | None = None  # None: nothing is learned
    onto: PinnedCheckpoint | None = None  # the result that the models are added to

    @property
    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON."""
        return digest_json(self.model_dump(mode="json"))
