"""Random masks: entries of a task vector are dropped by chance, and what is left is scaled up to make up for it.

An entry's draw depends on the seed, the model's content, the tensor and the entry's place in it (randomness.py), so
that neither pieces, nor shards, nor the order of models show.

Source: Yu et al. 2023, arXiv:2311.03099, section 3.2 (uniform); Deep et al. 2024, arXiv:2406.11617, section 3.1
    (ranked).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from app.domain.catalog import Granularity
from workers.contract import MergeContext
from workers.fusion import Draw
from workers.numerics import fused, randomness, sparsify

SMALLEST_PROBABILITY = 1e-6  # of keeping an entry: its inverse is a factor


class RandomMask(Protocol):
    """A way to drop entries: a frozen value."""

    @property
    def granularity(self) -> Granularity:
        """What it must see at once."""

    @property
    def keeps_norm(self) -> bool:
        """Whether a factor per tensor shall restore the sum of magnitudes; the mask itself then scales nothing."""

    def of(self, model: int) -> "RandomMask":
        """Return the mask that drops a model's entries."""

    def draw(self, delta: Tensor, key: int, *, start: int, factor: float, out: Tensor) -> None:
        """Write the task vector with the dropped entries set to zero, the others scaled by the mask, then the factor.

        delta, out: of one shape, float32; start: flat index of the first entry within its tensor.
        """


@dataclass(frozen=True)
class UniformMask:
    """Keeps every entry with the same probability."""

    density: float
    rescale: Literal["inverse_density", "l1", "none"]
    of_models: tuple["UniformMask", ...] = ()  # each model's, where they differ
    granularity: Granularity = "element"

    @property
    def keeps_norm(self) -> bool:
        """Whether a factor per tensor shall restore the sum of magnitudes."""
        return self.rescale == "l1"

    def of(self, model: int) -> "UniformMask":
        """Return the mask that drops a model's entries."""
        return self.of_models[model] if self.of_models else self

    def draw(self, delta: Tensor, key: int, *, start: int, factor: float, out: Tensor) -> None:
        """Write what is kept of a task vector of any shape."""
        out.copy_(delta)
        if self.density != 1.0 and fused.takes(delta):
            fused.draw(out.view(-1), self.fuse(key), start=start)
        elif self.density != 1.0:
            kept = delta * _keep(delta, key, start, self.density)
            out.copy_(kept.double().div_(self.density) if self.rescale == "inverse_density" else kept)
        if factor != 1.0:
            out.copy_(_scale(out, factor))

    def fuse(self, key: int, factor: float = 1.0) -> Draw:
        """Return what the mask does, fused. factor: on what is kept."""
        return Draw(key, self.density, self.density if self.rescale == "inverse_density" else 1.0, factor)


def fuse_draws(mask: UniformMask, context: MergeContext, factors: Sequence[float] = ()) -> tuple[Draw, ...]:
    """Return what `draw_all` does to each model, fused; nothing where all is kept as it is."""
    masks = [mask.of(model) for model in range(len(context.weights))]
    if not factors and all(one.density == 1.0 for one in masks):
        return ()
    keys = [context.random_key("mask", model) for model in range(len(masks))]
    scales = factors or (1.0,) * len(masks)
    return tuple(one.fuse(key, scale) for one, key, scale in zip(masks, keys, scales, strict=True))


@dataclass(frozen=True)
class RankedMask:
    """Keeps the entries of a row with a probability that grows with the rank of their magnitude, around a density."""

    density: float
    spread: float
    rescale: Literal["inverse_probability", "l1", "none"]
    of_models: tuple["RankedMask", ...] = ()  # each model's, where they differ
    granularity: Granularity = "row"

    @property
    def keeps_norm(self) -> bool:
        """Whether a factor per tensor shall restore the sum of magnitudes."""
        return self.rescale == "l1"

    def of(self, model: int) -> "RankedMask":
        """Return the mask that drops a model's entries."""
        return self.of_models[model] if self.of_models else self

    def draw(self, delta: Tensor, key: int, *, start: int, factor: float, out: Tensor) -> None:
        """Write what is kept of a task vector, [rows, width]."""
        by_rank = self._by_rank(delta)
        divides = self.rescale == "inverse_probability"
        if fused.takes(delta):
            fused.draw_ranked(delta.contiguous(), out, key, by_rank, divides=divides, factor=factor, start=start)
            return
        order = sparsify.row_keys(delta).argsort(dim=-1)  # the smallest first
        probabilities = torch.empty_like(delta, dtype=torch.float64).scatter_(-1, order, by_rank.expand(delta.shape))
        kept = delta * _keep(delta, key, start, probabilities)
        out.copy_(_scale(kept.double().div_(probabilities).float() if divides else kept, factor))

    def _by_rank(self, rows: Tensor) -> Tensor:
        """Return [width] float64: density − spread for the smallest of a row, up to density + spread."""
        width = rows.shape[-1]
        if width == 1 or self.spread == 0.0:
            return torch.full((width,), self.density, dtype=torch.float64, device=rows.device)
        steps = torch.arange(width, dtype=torch.float64, device=rows.device) / max(1, width - 1)
        return (self.density - self.spread + 2.0 * self.spread * steps).clamp_(SMALLEST_PROBABILITY, 1.0)


def draw_all(mask: RandomMask, deltas: Tensor, context: MergeContext, factors: Sequence[float] = ()) -> Tensor:
    """Return what each model's draws keep of its task vector, scaled by its factor if there are any.

    deltas: [n, *shape], the piece that the context names; result: [n, *shape] float32.
    """
    drawn = torch.empty_like(deltas, memory_format=torch.contiguous_format)
    for model, (delta, out) in enumerate(zip(deltas, drawn, strict=True)):
        key, factor = context.random_key("mask", model), factors[model] if factors else 1.0
        mask.of(model).draw(delta, key, start=context.offset, factor=factor, out=out)
    return drawn


def _scale(kept: Tensor, factor: float) -> Tensor:
    return kept.double().mul_(factor).float()  # by 1 it stays as it is


def _keep(delta: Tensor, key: int, start: int, probability: float | Tensor) -> Tensor:
    draws = randomness.draw_uniform(key, start=start, n=delta.numel(), device=delta.device)
    return draws.view(delta.shape) < probability
