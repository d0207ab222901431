"""What a model has beyond a shared one: the largest entries of the difference, as the model's own values there."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from app.domain.parameters import TrimScope
from workers.contract import MergeContext
from workers.numerics import fused, sparsify, task_vectors
from workers.numerics.sparsify import Boundary
from workers.patches import UNCHANGED, Patch, Replacement, Whole
from workers.stored import Models

LARGEST = "largest"  # name of the statistic


class Kept(Protocol):
    """Parameters that say which entries of the differences are kept."""

    @property
    def density(self) -> float:
        """The fraction of entries."""

    @property
    def scope(self) -> TrimScope:
        """Whether they are ranked over the model or each tensor."""


@dataclass(frozen=True)
class KeptRank:
    """The one rank that bounds what is kept of n entries: exactly floor(density · n), which may be none."""

    density: float

    def __call__(self, n: int) -> tuple[int]:
        """Return how many of n entries are kept."""
        return (sparsify.count_kept(self.density, n),)


def replace_all(finetuned: Models) -> list[Patch]:
    """Return a patch per model that replaces everything. finetuned: [n, *shape]."""
    return [Whole(model.reshape(-1)) for model in finetuned]


def replace_changed(finetuned: Models, shared: Tensor) -> list[Patch]:
    """Return a patch per model that replaces everything, or nothing where it is what is shared, to the bit.

    finetuned: [n, *shape], whole tensors; shared: [*shape].
    """
    return [UNCHANGED if is_same(model, shared) else Whole(model.reshape(-1)) for model in finetuned]


def is_same(model: Tensor, shared: Tensor) -> bool:
    """Tell whether two float32 tensors of one shape hold the same bits."""
    return torch.equal(model.contiguous().view(torch.int32), shared.contiguous().view(torch.int32))


def replace_largest(finetuned: Tensor, shared: Tensor, kept: Kept, context: MergeContext) -> list[Patch]:
    """Return a patch per model with its values where it differs most from what is shared; at density 1 all of them.

    finetuned: [n, m]; shared: [m]. The statistic LARGEST says where the largest entries end.
    """
    if kept.density >= 1:
        return replace_all(finetuned)
    boundaries = [found[0] for found in context.statistics[LARGEST].of(context.tensor)]
    start = context.position if kept.scope == "global" else context.offset
    return [
        _replace_first(model, shared, boundary, start=start)
        for model, boundary in zip(finetuned, boundaries, strict=True)
    ]


def _replace_first(model: Tensor, shared: Tensor, boundary: Boundary, *, start: int) -> Patch:
    """Return a patch with the model's values at the entries whose difference ranks before the boundary.

    model, shared: [m] float32, a run of entries whose first has flat index `start` in what was ranked.
    """
    if fused.takes(model):
        return Replacement(*fused.pick(model, shared, boundary.magnitude, boundary.index - start))
    indices = sparsify.is_first(task_vectors.subtract(model, shared), boundary, start=start).nonzero().view(-1)
    return Replacement(indices, model[indices])
