"""Multitask merges for tests: each task's model in memory, or out of the files of an artifact."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from app.domain.checkpoints import LocalCheckpoint, Manifest
from tests.workers.files import ignore, read_tensors
from tests.workers.memory import MemoryMerge, StateDict
from workers import patches
from workers.granularity import step_elements
from workers.patches import Bits
from workers.pipelines.materialize import materialize


def merge_tasks(merge: MemoryMerge, base: StateDict, models: Sequence[StateDict]) -> list[dict[str, Tensor]]:
    """Return the model of each task, float32, from the patches of all pieces."""
    source, program = merge.prepare(base, models)
    found: list[dict[str, Tensor]] = [{} for _ in models]
    for name, shape, _ in source.tensors:
        n = prod(shape)
        step = step_elements(program.granularity, shape, source.piece_elements)
        pieces = [program.complete(source.read(name, at, min(step, n - at))) for at in range(0, n, step)]
        shared = torch.cat([torch.empty(0), *(piece.merged for piece in pieces if piece.merged is not None)]).view(
            shape
        )
        encoded = [
            [patches.encode(patch, torch.float32, piece.shape, piece.offset) for patch in program.patch(piece)]
            for piece in pieces
        ]
        for index, task in enumerate(found):
            task[name] = shared.clone()
            patches.apply(task[name], _join([parts[index] for parts in encoded]), base[name].float())
    return found


def _join(pieces: Sequence[Sequence[patches.Part]]) -> dict[str, Tensor]:
    """Return the parts of a whole tensor's patch, as a file would hold them."""
    runs: dict[str, list[patches.Part]] = {}
    for part in (part for parts in pieces for part in parts):
        runs.setdefault(part.role, []).append(part)
    return {role: _join_role(parts) for role, parts in runs.items()}


def _join_role(parts: Sequence[patches.Part]) -> Tensor:
    first = parts[0]
    if first.is_repeated:
        assert isinstance(first.content, Tensor)
        return first.content
    numbers = [part.content for part in parts if isinstance(part.content, Tensor)]
    if numbers:
        joined = torch.cat([part.reshape(-1) for part in numbers])
        return joined if first.shape is None else joined.view(first.shape)
    bits: list[Bits] = [part.content for part in parts if not isinstance(part.content, Tensor)]
    packed = patches.pack(_concatenate(bits))
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)


def _concatenate(bits: Sequence[Bits]) -> Bits:
    return torch.cat([torch.from_numpy(run) for run in bits]).numpy()


def read_tasks(folder: Path, manifest: Manifest) -> list[dict[str, Tensor]]:
    """Return the materialized model of each task of an artifact that lies in a folder."""
    artifact = LocalCheckpoint(id="artifact", path=folder, manifest=manifest)
    found: list[dict[str, Tensor]] = []
    for patch in manifest.patches:
        output = folder.parent / f"{folder.name}-{patch.task}"
        output.mkdir()
        materialize(artifact, patch.task, output, ignore)
        found.append(read_tensors(output))
    return found
