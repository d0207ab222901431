"""Models added to a result, without the models that it was made of.

A dense result is a sum over its models, θ = θ₀ + Σ cᵢ: what the new ones add is merged over the base, and the
difference is put on top. A merge of all at once rounds once; this rounds the result before, what is added, and the sum.
Where it is a quotient of two sums, it has kept them, and the new ones are added to those: to the bit, as all at once.

The patches of a multitask result apply to weights that stay as they are: they are taken over, byte for byte.
"""

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from app.domain.checkpoints import FileEntry, LocalCheckpoint, TensorSpec
from app.domain.errors import IncompatibleCheckpoints, JobInternal
from app.domain.plans import WeightsPlan
from workers.checkpoints.reader import TensorReader, path_of
from workers.checkpoints.sums_file import SumsReader
from workers.contract import Piece
from workers.numerics import precision


@dataclass(frozen=True)
class Onto:
    """A dense result that models are added to, open for reading."""

    reader: TensorReader
    stored: Mapping[str, TensorSpec]
    sums: SumsReader | None = None  # which it has kept

    def add(self, merged: Tensor, piece: Piece, name: str) -> Tensor:
        """Return the result's run plus what the merge changed of the base; bit for bit the result's where it did not.

        merged: [m] float32, of the piece; name: the tensor's in the result. Result: [m] float32.
        """
        if piece.base is None:
            raise JobInternal(f"models are added to tensor {name!r} without a base; report this fault.")
        before = torch.empty_like(merged)
        self.reader.read_floats(self.stored[name], piece.offset, before)
        change = merged.double() - piece.base.double()
        return torch.where(change == 0, before, precision.round_to_float32(before.double() + change))


def open_onto(stack: ExitStack, plan: WeightsPlan, onto: LocalCheckpoint, sums: SumsReader | None = None) -> Onto:
    """Open a result that models are added to. sums: those that it has kept.

    Raises: IncompatibleCheckpoints naming a tensor that is not as in the plan.
    """
    stored = {tensor.name: tensor for tensor in onto.manifest.tensors}
    for planned in plan.tensors:
        found = stored.get(planned.name)
        if found is None or found.shape != planned.shape:
            what = "is missing from it" if found is None else f"has shape {list(found.shape)} in it"
            raise IncompatibleCheckpoints(
                f"The models cannot be added to {onto.id}: tensor {planned.name!r} {what}, expected "
                f"{list(planned.shape)}; name a result that was merged over the same base model."
            )
    return Onto(stack.enter_context(TensorReader(onto)), stored, sums)


def copy_patches(onto: LocalCheckpoint, weights_digest: str, output: Path) -> list[FileEntry]:
    """Copy the patches of a multitask result, which apply to the weights of this digest.

    Raises: IncompatibleCheckpoints where they apply to others.
    """
    if onto.manifest.weights_digest != weights_digest:
        raise IncompatibleCheckpoints(
            f"The patches of {onto.id} apply to weights {onto.manifest.weights_digest}, found {weights_digest}; add "
            "tasks by POST /v1/artifacts/{id}/tasks, which names the right base model."
        )
    files = {patch.file for patch in onto.manifest.patches}
    for file in sorted(files):
        target = output / file
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path_of(onto, file), target)
    return [entry for entry in onto.manifest.files if entry.path in files]
