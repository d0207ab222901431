"""Multitask merges for tests: each task's model in memory, or out of the files of an artifact."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from app.domain.checkpoints import LocalCheckpoint, Manifest
from tests.workers.files import ignore, read_tensors
from tests.workers.memory import MemoryMerge, StateDict
from workers import patches
from workers.granularity import step_elements
from workers.patches import Masked, Measured, Packed, Patch
from workers.pipelines.materialize import materialize


def merge_tasks(merge: MemoryMerge, base: StateDict, models: Sequence[StateDict]) -> list[dict[str, Tensor]]:
    """Return the model of each task, float32, from the patches of all pieces."""
    source, program = merge.prepare(base, models)
    found: list[dict[str, Tensor]] = [{} for _ in models]
    patches_of: dict[str, list[Sequence[Patch]]] = {}
    for name, shape, _ in source.tensors:
        n = prod(shape)
        step = step_elements(program.granularity, shape, source.piece_elements)
        pieces = [program.complete(source.read(name, at, min(step, n - at))) for at in range(0, n, step)]
        shared = torch.cat([torch.empty(0), *(piece.merged for piece in pieces if piece.merged is not None)]).view(
            shape
        )
        patches_of[name] = [program.patch(piece) for piece in pieces]
        for task in found:
            task[name] = shared.clone()
    scales = program.scales(_measure(patches_of, found[0]))
    for name, pieces_of in patches_of.items():
        step = step_elements(program.granularity, tuple(found[0][name].shape), source.piece_elements)
        for index, task in enumerate(found):
            own = [_with_scale(of_models[index], scales.get(name), index) for of_models in pieces_of]
            shape = tuple(task[name].shape)
            encoded = [patches.encode(one, torch.float32, shape, run * step) for run, one in enumerate(own)]
            patches.apply(task[name], _join(encoded), base[name].float())
    return found


def _measure(found: Mapping[str, Sequence[Sequence[Patch]]], tensors: StateDict) -> dict[str, Measured]:
    """Return what the masks of each tensor that have no scale have measured."""
    measured: dict[str, Measured] = {}
    for name, pieces in found.items():
        runs = [[mask.measure for mask in masks if isinstance(mask, Masked)] for masks in pieces]
        known = [np.stack([one for one in run if one is not None]) for run in runs if run and run[0] is not None]
        if known:
            measured[name] = Measured(tensors[name].numel(), np.sum(known, axis=0))
    return measured


def _with_scale(patch: Patch, scales: Sequence[float] | None, index: int) -> Patch:
    return replace(patch, scale=scales[index]) if isinstance(patch, Masked) and scales is not None else patch


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
    runs = [part.content for part in parts if isinstance(part.content, Packed)]
    bits = np.concatenate([np.unpackbits(run.content, count=run.n, bitorder="little") for run in runs])
    return torch.from_numpy(patches.pack(bits.view(np.bool_)).content)


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
