"""Checkpoints as callers see them: one, its tensors, its lineage."""

from typing import Any, Literal

from pydantic import Field

from app.domain.checkpoints import CheckpointKind, CheckpointState, TensorDifference
from app.domain.views.jobs import Instant, JobView, View

Storage = Literal["reference", "copy"]


class CheckpointView(View):
    """A stored model: one version of a name."""

    id: str
    name: str
    version: int
    kind: CheckpointKind
    state: CheckpointState
    uri: str | None = Field(description="Where it was registered from; null for what was uploaded or a job produced.")
    storage: Storage
    base_checkpoint: str | None = Field(description="Id of the checkpoint it was fine-tuned from or merged over.")
    task: str | None
    tags: dict[str, str]
    content_digest: str | None = Field(description="sha256 over the files; null while importing.")
    weights_digest: str | None = Field(
        description="SHA-256 over the tensors and their BLAKE3 digests; does not depend on sharding."
    )
    size_bytes: int | None
    n_tensors: int | None
    n_parameters: int | None
    dtype: str | None = Field(description="The dtype with the most bytes, as safetensors names it.")
    architecture: str | None
    problem: dict[str, Any] | None = Field(description="Why it is invalid; null otherwise.")
    job: str | None = Field(description="Id of the job that imported or produced it.")
    artifact: str | None = Field(description="Id of the artifact that holds its bytes; null for a reference.")
    pinned: bool
    expires_at: Instant | None
    actor: str
    created_at: Instant
    updated_at: Instant
    revision: int


class ImportView(View):
    """A checkpoint that is being imported, and the job that does it."""

    checkpoint: CheckpointView
    job: JobView


class TensorView(View):
    """One tensor, from the header of its file."""

    name: str
    dtype: str
    shape: list[int]
    n_elements: int
    size_bytes: int
    file: str


class LineageNode(View):
    """A checkpoint in a lineage; a deleted one stays as a tombstone."""

    id: str
    name: str
    version: int
    kind: CheckpointKind
    state: CheckpointState
    task: str | None
    is_deleted: bool


class LineageEdge(View):
    """`target` was made from `source`, by a job or by the word of who registered it."""

    source: str
    target: str
    role: Literal["base_model", "model", "head", "base_checkpoint"]
    job: str | None


class LineageView(View):
    """What a checkpoint was made from, and what was made from it."""

    checkpoint: str
    nodes: list[LineageNode]
    edges: list[LineageEdge]
    is_truncated: bool


class CompatibilityView(View):
    """Whether checkpoints have the same tensors, from headers alone."""

    is_mergeable: bool
    n_tensors: int
    n_parameters: int
    n_differences: int
    differences: list[TensorDifference] = Field(description="The first of them; `model` is an index into `models`.")
    tied: list[list[str]]
    vocab_sizes: list[int | None] = Field(description="Of the base model, or of the first model again, then of models.")
