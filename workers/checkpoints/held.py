"""A checkpoint whose weights lie in memory: it can be run like any other, and was never written."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import ConfigDict
from torch import Tensor

from app.domain.checkpoints import CheckpointKind, FileEntry, LocalCheckpoint, Manifest


class HeldCheckpoint(LocalCheckpoint):
    """A dense checkpoint; `path` holds what lies beside the weights: config and tokenizer."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    tensors: Mapping[str, Tensor]  # name -> [*shape], in the checkpoint's dtypes


def hold(
    tensors: Mapping[str, Tensor], path: Path, companions: tuple[FileEntry, ...], identity: FileEntry
) -> HeldCheckpoint:
    """Return tensors as a checkpoint. identity: the file that decides them; no two checkpoints have one digest."""
    files = tuple(sorted((*companions, identity), key=lambda entry: entry.path))
    manifest = Manifest(kind=CheckpointKind.DENSE, files=files, tensors=(), weights_digest=identity.sha256)
    return HeldCheckpoint(id="held", path=path, manifest=manifest, tensors=tensors)
