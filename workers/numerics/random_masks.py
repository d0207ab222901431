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

    def fuse(self, key: int, factor: float = 1.0) -> Draw:
        """Return what the mask does, fused. factor: on what is kept."""


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
        if fused.takes(delta) and (self.density, factor) != (1.0, 1.0):
            fused.draw(out, self.fuse(key, factor), start=start)
            return
        if self.density != 1.0:
            kept = delta * _keep(delta, key, start, self.density)
            out.copy_(kept.double().div_(self.density) if self.rescale == "inverse_density" else kept)
        if factor != 1.0:
            out.copy_(_scale(out, factor))

    def fuse(self, key: int, factor: float = 1.0) -> Draw:
        """Return what the mask does, fused. factor: on what is kept."""
        return Draw(key, self.density, divides=self.rescale == "inverse_density", factor=factor)


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
        if fused.takes(delta):
            out.copy_(delta)
            fused.draw(out, self.fuse(key, factor), start=start)
            return
        by_rank = randomness.keep_probabilities(delta.shape[-1], self.density, self.spread, delta.device)
        order = sparsify.row_keys(delta).argsort(dim=-1)  # the smallest first
        probabilities = torch.empty_like(delta, dtype=torch.float64).scatter_(-1, order, by_rank.expand(delta.shape))
        kept = delta * _keep(delta, key, start, probabilities)
        out.copy_(_scale(kept.double().div_(probabilities).float() if self._divides else kept, factor))

    def fuse(self, key: int, factor: float = 1.0) -> Draw:
        """Return what the mask does, fused. factor: on what is kept."""
        return Draw(key, self.density, self.spread, self._divides, factor)

    @property
    def _divides(self) -> bool:
        return self.rescale == "inverse_probability"


def fuse_draws(mask: RandomMask, context: MergeContext, factors: Sequence[float] = ()) -> tuple[Draw, ...]:
    """Return what `draw_all` does to each model, fused; nothing where all is kept as it is."""
    keys = [context.random_key("mask", model) for model in range(len(context.weights))]
    scales = factors or (1.0,) * len(keys)
    draws = tuple(mask.of(model).fuse(key, scale) for model, (key, scale) in enumerate(zip(keys, scales, strict=True)))
    is_whole = all(draw.probability == 1.0 and draw.spread == 0.0 for draw in draws)
    return () if is_whole and not factors else draws


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
