"""Which entries of a task vector its task needs: a mask that is learned on a few examples.

Source: He et al. 2024, arXiv:2408.13656 (Localize-and-Stitch), section 3.2, equation 2.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Literal

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from app.domain.errors import NotFinite
from workers import patches
from workers.learning.curves import thin_out
from workers.learning.merged_weights import put_in_place
from workers.learning.task_vectors import BLOCK_ELEMENTS
from workers.learning_contract import LearningSession
from workers.model_contract import Probe
from workers.numerics import task_vectors

Regularizer = Literal["l1", "binarize"]


@dataclass(frozen=True)
class Localization:
    """How masks are learned."""

    sigmoid_bias: float  # scores begin at ± this
    learning_rate: float  # times the number of entries
    steps: int
    batch_size: int  # examples run at a time; the gradient is that of all
    l1: float
    regularizer: Regularizer


@dataclass
class Localizer:
    """The scores S of one task's entries: the model runs with θ₀ + σ(S) ⊙ τ."""

    task: str
    how: Localization
    base: dict[str, Tensor]  # tensor -> [*shape] float32
    delta: dict[str, Tensor]
    scores: dict[str, Tensor]
    weights: dict[str, nn.Parameter]
    losses: list[float] = field(default_factory=list)

    @property
    def n_entries(self) -> int:
        """Entries of the task vector."""
        return sum(tensor.numel() for tensor in self.delta.values())

    @property
    def masks(self) -> dict[str, Tensor]:
        """Where σ(S) > ½, by tensor, [*shape] bool."""
        return {name: scores > 0 for name, scores in self.scores.items()}

    def step(self, probe: Probe, on_batch: Callable[[int], None]) -> None:
        """Go one step down the mean loss plus the penalty. Raises: NotFinite naming task and step."""
        for name, weight in self.weights.items():
            weight.data = self.base[name] + self.scores[name].sigmoid() * self.delta[name]
        self.losses.append(self._run(probe, on_batch))
        if not math.isfinite(self.losses[-1]):
            raise NotFinite(
                f"The loss on task {self.task!r} is {self.losses[-1]} at step {len(self.losses)} of {self.how.steps}, "
                "expected a finite number. Look for NaN in the model, or in its task's head."
            )
        for name, scores in self.scores.items():
            inside = scores.sigmoid()
            slope = self._pull(scores)
            gradient = self.weights[name].grad if name in self.weights else None
            if gradient is not None:
                slope += gradient * self.delta[name] * self.n_entries
            scores -= self.how.learning_rate * inside * (1 - inside) * slope

    def report(self) -> dict[str, JsonValue]:
        """Return the share of entries that are kept, and how the loss went."""
        n_kept = sum(int(mask.sum()) for mask in self.masks.values())
        return {"task": self.task, "density": n_kept / max(1, self.n_entries), "losses": thin_out(self.losses)}

    def _run(self, probe: Probe, on_batch: Callable[[int], None]) -> float:
        """Leave the gradient of the mean loss in the weights, and return the loss."""
        for weight in self.weights.values():
            weight.grad = None
        total, size = 0.0, self.how.batch_size
        order = list(probe.order)
        for at in range(0, len(order), size):
            loss = probe.losses(order[at : at + size]).sum() / len(order)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
            on_batch(min(at + size, len(order)))
        return total

    def _pull(self, scores: Tensor) -> Tensor:
        """Return the penalty's gradient with respect to σ(S), times the number of entries."""
        if self.how.regularizer == "l1":
            return torch.full_like(scores, self.how.l1)
        return torch.where(scores > 0, -self.how.l1, self.how.l1)  # away from 0


def localize(  # noqa: PLR0913 a model on its task, where its mask begins, and how it goes on
    session: LearningSession,
    model: int,
    probe: Probe,
    start: Callable[[str, Tensor], Tensor],
    how: Localization,
    on_example: Callable[[int], None],
) -> Localizer:
    """Return the scores of one model after all steps. Memory: five sets of weights in float32.

    start: (tensor, its task vector [*shape]) -> which entries the mask begins with, [*shape] bool. on_example: how many
    of the examples are done, all steps taken together.
    Raises: NotFinite.
    """
    localizer = open_localizer(session, model, probe, start, how)
    for step in range(how.steps):
        localizer.step(probe, partial(_report, on_example, probe.n_examples, how.steps, step))
    return localizer


def open_localizer(
    session: LearningSession, model: int, probe: Probe, start: Callable[[str, Tensor], Tensor], how: Localization
) -> Localizer:
    """Put weights of its own into a model's probe, and return the scores before the first step."""
    base: dict[str, Tensor] = {}
    delta: dict[str, Tensor] = {}
    for name, shape, _ in session.source.tensors:
        base[name], delta[name] = _read(session, model, name, shape)
    probe.module.requires_grad_(requires_grad=False)
    weights: dict[str, nn.Parameter] = {}
    for path, name in session.places(probe.module).items():
        if name in delta:
            weights.setdefault(name, nn.Parameter(base[name].clone()))
            put_in_place(probe.module, path, weights[name])
    scores = {
        name: torch.where(start(name, tensor), how.sigmoid_bias, -how.sigmoid_bias) for name, tensor in delta.items()
    }
    return Localizer(session.tasks[model], how, base, delta, scores, weights)


def _read(session: LearningSession, model: int, name: str, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return a tensor's base and one model's task vector, [*shape] each, on the session's device."""
    n = prod(shape)
    base, delta = torch.empty(n), torch.empty(n)
    for at in range(0, n, BLOCK_ELEMENTS):
        piece = session.source.read(name, at, min(BLOCK_ELEMENTS, n - at))
        end = at + piece.finetuned.shape[1]
        if piece.base is not None:
            base[at:end] = piece.base
            delta[at:end] = task_vectors.subtract(piece.finetuned[model : model + 1], piece.base)[0]
    return tuple(tensor.view(*shape).to(session.device) for tensor in (base, delta))  # type: ignore[return-value]


def _report(on_example: Callable[[int], None], n_examples: int, steps: int, step: int, done: int) -> None:
    on_example(max(1, (step * n_examples + done) // steps))


def pack(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return masks as a file holds them, [⌈n / 8⌉] uint8 each, the lowest bit first."""
    return {
        name: torch.from_numpy(patches.pack(mask.reshape(-1).cpu().numpy()).content) for name, mask in masks.items()
    }
