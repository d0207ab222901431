"""The files beside the weights: config, tokenizer and license travel from the reference model into the result."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from app.domain.checkpoints import FileEntry, LocalCheckpoint
from app.domain.errors import InputChanged
from app.domain.plans import WeightsPlan
from workers.checkpoints.config import CONFIG_FILE, with_dtype
from workers.checkpoints.files import INDEX_FILE, WEIGHTS_SUFFIX
from workers.checkpoints.reader import path_of

COEFFICIENTS_FILE = "coefficients.json"
WRITTEN_ANEW = frozenset(
    {INDEX_FILE, "README.md", "recipe.json", "finetune.json", "materialization.json", COEFFICIENTS_FILE}
)


def copy_companions(
    reference: LocalCheckpoint,
    output: Path,
    *,
    dtype: str | None,
    change_config: Callable[[bytes], bytes] = lambda config: config,
) -> Iterator[FileEntry]:
    """Copy the files beside the reference's weights; `dtype`, where given, becomes the config's dtype.

    Raises: InputChanged when a file is not the one that was registered.
    """
    for entry in reference.manifest.files:
        if entry.path in WRITTEN_ANEW or entry.path.endswith(WEIGHTS_SUFFIX):
            continue
        content = path_of(reference, entry.path).read_bytes()
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise InputChanged(
                f"{reference.id}: {entry.path} is not the file that was registered, expected sha256 {entry.sha256}; "
                "register the checkpoint again."
            )
        if entry.path == CONFIG_FILE:
            content = change_config(content if dtype is None else with_dtype(content, dtype))
        yield write_file(output, entry.path, content)


def write_index(plan: WeightsPlan, output: Path) -> Iterator[FileEntry]:
    """Write the index that says which tensor lies where, if there are several weight files."""
    if not plan.is_sharded:
        return
    placed = {tensor.name: tensor.file for tensor in sorted(plan.tensors, key=lambda tensor: tensor.name)}
    total = sum(tensor.end - tensor.begin for tensor in plan.tensors)
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    yield write_file(output, INDEX_FILE, json.dumps(index, indent=2).encode() + b"\n")


def write_file(output: Path, path: str, content: bytes) -> FileEntry:
    """Write one small file and return its entry."""
    target = output / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return FileEntry(path=path, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
