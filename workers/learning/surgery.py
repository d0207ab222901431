"""Surgery modules by the distance to each task's own model, on inputs without labels.

Source: Yang et al. 2024, arXiv:2402.02705 (Representation Surgery), equations 3 and 4; Yang et al. 2024,
    arXiv:2410.14389 (SurgeryV2): the same behind every block.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, JsonValue
from torch import Tensor

from app.domain.checkpoints import FileEntry
from app.domain.errors import HeadMismatch, NotFinite
from app.domain.parameters import AdamLearningRate, NestedMethod, Parameters
from workers.contract import NestedMerge
from workers.datasets.batches import draw_batches
from workers.learning.blocks import BlockOutputs, find_blocks
from workers.learning.curves import thin_out
from workers.learning.shared_model import SharedModel, bind, merge_shared
from workers.learning_contract import LearningSession
from workers.model_contract import Probe, Step
from workers.numerics import optimize
from workers.surgery import FEATURES, Modules, SurgeryModule

SHARED = "shared"
EXAMPLES_AT_ONCE = 32  # whose features are made at a time
Loss = Callable[[Modules, Sequence[int]], Tensor]  # of modules on a batch of examples, 0-d, with its graph


class SurgeryParameters(Parameters):
    """Parameters of `surgery` and `surgery_v2`."""

    shared: NestedMethod = Field(
        default=NestedMethod(method="task_arithmetic", parameters={"scaling_coefficient": 0.3}),
        description="The method that merges the models into what all tasks share.",
    )
    rank: Annotated[int, Field(ge=0, le=4096, description="Rank of each module; 0: there are none.")] = 16
    learning_rate: AdamLearningRate = 1e-3
    steps: Annotated[int, Field(ge=0, le=100_000, description="Steps of Adam for each task, each over one batch.")] = (
        1000
    )
    batch_size: Annotated[int, Field(ge=1, le=4096, description="Examples of the task in a step.")] = 16


@dataclass(frozen=True)
class LearnedModules:
    """The modules of each task; satisfies learning_contract.Learned and HasModules."""

    of_tasks: tuple[Modules, ...]
    told: tuple[dict[str, JsonValue], ...]  # of each task: how they were learned

    def report(self) -> dict[str, JsonValue]:
        """Return, per task, how many numbers were learned and how the distance fell."""
        modules: list[JsonValue] = [
            {"n_modules": len(one), "n_values": sum(module.n_values for module in one.values()), **told}
            for one, told in zip(self.of_tasks, self.told, strict=True)
        ]
        return {"modules": modules}

    def write(self, folder: Path) -> Sequence[FileEntry]:
        """Write nothing: the modules lie in the patches of their tasks."""
        return ()


def learn_features(session: LearningSession, parameters: SurgeryParameters) -> LearnedModules:
    """Return a module per task for the features that its head sees. Both models' features are made once, and kept.

    Raises: HeadMismatch for a task under the checkpoint's own head; NotFinite; whatever opening a task raises.
    """

    def open_loss(run: "_Run", task: int) -> tuple[Loss, Mapping[str, int], int]:
        probe = session.open(task, model=task)
        aims = _features(probe, session.tasks[task])
        bind(session, probe.module, run.shared)
        merged = _features(probe, session.tasks[task])
        return _loss_of_features(merged, aims), {FEATURES: aims.shape[-1]}, probe.n_examples

    return _Run(session, parameters, open_loss).learn()


def learn_blocks(session: LearningSession, parameters: SurgeryParameters) -> LearnedModules:
    """Return a module per task and block. The merged model runs with those before, as it will when it is used.

    Raises: ModelNotRunnable for a model without blocks; NotFinite; whatever opening a task raises.
    """

    def open_loss(run: "_Run", task: int) -> tuple[Loss, Mapping[str, int], int]:
        own, merged = (session.open(task, model=task) for _ in range(2))
        bind(session, merged.module, run.shared)
        paths = find_blocks(own.module, lambda: _output(own, [0]))
        aims, found = (BlockOutputs(probe.module, paths) for probe in (own, merged))
        with torch.no_grad(), aims.watching():
            _output(own, [0])
        widths = {path: aims.widths[path] for path in paths}
        aims.take()
        return _loss_of_blocks((own, aims), (merged, found)), widths, own.n_examples

    return _Run(session, parameters, open_loss).learn()


def _loss_of_features(merged: Tensor, aims: Tensor) -> Loss:
    def loss(modules: Modules, batch: Sequence[int]) -> Tensor:
        chosen = list(batch)
        return (modules[FEATURES](merged[chosen]) - aims[chosen]).abs().mean()

    return loss


def _loss_of_blocks(own: tuple[Probe, BlockOutputs], merged: tuple[Probe, BlockOutputs]) -> Loss:
    """Return the loss Σ over the blocks of mean |h' − h| over tokens and entries."""

    def loss(modules: Modules, batch: Sequence[int]) -> Tensor:
        with torch.no_grad(), own[1].watching():
            _output(own[0], batch)
        with merged[1].watching(modules):
            _output(merged[0], batch)
        pairs = zip(merged[1].take(), own[1].take(), strict=True)
        return torch.stack([(found - aim).abs().mean() for found, aim in pairs]).sum()

    return loss


def _output(probe: Probe, batch: Sequence[int]) -> Tensor:
    return (probe.features or probe.logits)(batch)


def _features(probe: Probe, task: str) -> Tensor:
    """Return the features of all examples, [n, width] float32."""
    if probe.features is None:
        raise HeadMismatch(
            f"Task {task!r} has the checkpoint's own head, whose features are not at hand; make a task with another "
            "head, or merge by surgery_v2, which corrects blocks."
        )
    with torch.no_grad():
        order = list(probe.order)
        batches = [order[at : at + EXAMPLES_AT_ONCE] for at in range(0, len(order), EXAMPLES_AT_ONCE)]
        found = torch.cat([probe.features(batch) for batch in batches])
    features = torch.empty_like(found)
    features[order] = found
    return features


Opened = tuple[Loss, Mapping[str, int], int]  # the loss, the width at each place, and how many examples there are


@dataclass
class _Run:
    """The modules of all tasks, one task after the other."""

    session: LearningSession
    parameters: SurgeryParameters
    open_loss: Callable[["_Run", int], Opened]
    shared: SharedModel = field(default_factory=dict)
    done: int = 0

    def learn(self) -> LearnedModules:
        """Return the modules; those that change nothing are left out."""
        n_tasks = len(self.session.tasks)
        if self.parameters.rank == 0 or self.parameters.steps == 0:
            nothing: dict[str, JsonValue] = {"losses": []}
            return LearnedModules(({},) * n_tasks, tuple({"task": task, **nothing} for task in self.session.tasks))
        nested: NestedMerge = self.session.context.nested[SHARED]
        self.shared = merge_shared(self.session, nested)
        learned = [self.learn_task(task) for task in range(n_tasks)]
        return LearnedModules(tuple(modules for modules, _ in learned), tuple(told for _, told in learned))

    def learn_task(self, task: int) -> tuple[Modules, dict[str, JsonValue]]:
        """Return the modules of one task, and the losses."""
        loss_of, widths, n_examples = self.open_loss(self, task)
        batches = draw_batches(n_examples, self.parameters.batch_size, self.session.generator("batches", task))
        losses: list[float] = []

        def gradient(point: Tensor) -> Tensor:
            leaf = point.detach().float().to(self.session.device).requires_grad_()
            loss = loss_of(_unpack(leaf, widths, self.parameters.rank), next(batches))
            self.note(task, losses, loss.item())
            (slope,) = torch.autograd.grad(loss, leaf)
            return slope.double().cpu()

        start = _start(widths, self.parameters.rank, self.session, task)
        found = optimize.descend(
            start, gradient, learning_rate=self.parameters.learning_rate, steps=self.parameters.steps
        )
        modules = _unpack(found.float(), widths, self.parameters.rank)
        kept = {place: module for place, module in modules.items() if bool(module.up.any())}
        return kept, {"task": self.session.tasks[task], "losses": thin_out(losses)}

    def note(self, task: int, losses: list[float], loss: float) -> None:
        """Take note of a step, and report it. Raises: NotFinite naming task and step."""
        losses.append(loss)
        if not math.isfinite(loss):
            raise NotFinite(
                f"The distance to the model of task {self.session.tasks[task]!r} is {loss} at step {len(losses)} of "
                f"{self.parameters.steps}, expected a finite number. Lower learning_rate (now "
                f"{self.parameters.learning_rate}), or look for NaN in the models."
            )
        self.done += 1
        total = self.parameters.steps * len(self.session.tasks)
        self.session.on_step(Step(done=self.done, total=total, loss=loss))


def _start(widths: Mapping[str, int], rank: int, session: LearningSession, task: int) -> Tensor:
    """Return where the modules begin, flat, float64: D uniform in ±1/√width, U zero, so that nothing is changed."""
    parts: list[Tensor] = []
    for place, width in widths.items():
        down = torch.empty(rank * width, dtype=torch.float64)
        bound = 1.0 / math.sqrt(width)
        down.uniform_(-bound, bound, generator=session.generator(f"surgery {place}", task))
        parts += [down, torch.zeros(width * rank, dtype=torch.float64)]
    return torch.cat(parts)


def _unpack(point: Tensor, widths: Mapping[str, int], rank: int) -> dict[str, SurgeryModule]:
    """Return the modules that lie flat in a point, D before U, place after place."""
    sizes = [rank * width for width in widths.values() for _ in range(2)]
    parts: Iterator[Tensor] = iter(torch.split(point, sizes))
    return {
        place: SurgeryModule(next(parts).view(rank, width), next(parts).view(width, rank))
        for place, width in widths.items()
    }
