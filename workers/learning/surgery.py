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

    return _learn(session, parameters, _open_features)


def learn_blocks(session: LearningSession, parameters: SurgeryParameters) -> LearnedModules:
    """Return a module per task and block. The merged model runs with those before, as it will when it is used.

    Raises: ModelNotRunnable for a model without blocks; NotFinite; whatever opening a task raises.
    """

    return _learn(session, parameters, _open_blocks)


@dataclass(frozen=True)
class _Task:
    """What the modules of a task are learned on."""

    loss: Callable[[Modules, Sequence[int]], Tensor]  # of modules on a batch of examples, 0-d, with its graph
    widths: Mapping[str, int]  # of the representation at each place
    n_examples: int


def _open_features(session: LearningSession, shared: SharedModel, task: int) -> _Task:
    probe = session.open(task, model=task)
    aims = _features(probe, session.tasks[task])
    bind(session, probe.module, shared)
    merged = _features(probe, session.tasks[task])

    def loss(modules: Modules, batch: Sequence[int]) -> Tensor:
        chosen = list(batch)
        return (modules[FEATURES](merged[chosen]) - aims[chosen]).abs().mean()

    return _Task(loss, {FEATURES: aims.shape[-1]}, probe.n_examples)


def _open_blocks(session: LearningSession, shared: SharedModel, task: int) -> _Task:
    own, merged = (session.open(task, model=task) for _ in range(2))
    bind(session, merged.module, shared)
    paths = find_blocks(own.module, lambda: _output(own, [0]))
    aims, found = (BlockOutputs(probe.module, paths) for probe in (own, merged))

    def loss(modules: Modules, batch: Sequence[int]) -> Tensor:
        with torch.no_grad(), aims.watching():
            _output(own, batch)
        with found.watching(modules):
            _output(merged, batch)
        pairs = zip(found.take(), aims.take(), strict=True)
        return torch.stack([(one - aim).abs().mean() for one, aim in pairs]).sum()  # over the blocks

    with torch.no_grad():
        loss({}, [0])  # tells how wide the blocks are
    return _Task(loss, {path: aims.widths[path] for path in paths}, own.n_examples)


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


def _learn(
    session: LearningSession,
    parameters: SurgeryParameters,
    open_: Callable[[LearningSession, SharedModel, int], _Task],
) -> LearnedModules:
    """Return the modules of all tasks, one task after the other."""
    names = session.tasks
    if parameters.rank == 0 or parameters.steps == 0:
        untold: list[dict[str, JsonValue]] = [{"task": name, "losses": []} for name in names]
        return LearnedModules(({},) * len(names), tuple(untold))
    nested: NestedMerge = session.context.nested[SHARED]
    shared = merge_shared(session, nested)
    learned = [_Run(session, parameters, index, open_(session, shared, index)).learn() for index in range(len(names))]
    return LearnedModules(tuple(modules for modules, _ in learned), tuple(told for _, told in learned))


@dataclass
class _Run:
    """The descent of one task's modules, which lie flat in one point."""

    session: LearningSession
    parameters: SurgeryParameters
    index: int
    task: _Task
    losses: list[float] = field(default_factory=list)

    def learn(self) -> tuple[Modules, dict[str, JsonValue]]:
        """Return the modules, without those that change nothing, and how the loss went."""
        generator = self.session.generator("batches", self.index)
        batches = draw_batches(self.task.n_examples, self.parameters.batch_size, generator)

        def gradient(point: Tensor) -> Tensor:
            leaf = point.float().to(self.session.device).requires_grad_()
            loss = self.task.loss(self.unpack(leaf), next(batches))
            self.note(loss.item())
            (slope,) = torch.autograd.grad(loss, leaf)
            return slope.double().cpu()

        rate, steps = self.parameters.learning_rate, self.parameters.steps
        found = optimize.descend(self.start(), gradient, learning_rate=rate, steps=steps)
        modules = {place: one for place, one in self.unpack(found.float()).items() if bool(one.up.any())}
        return modules, {"task": self.session.tasks[self.index], "losses": thin_out(self.losses)}

    def note(self, loss: float) -> None:
        """Take note of a step, and report it. Raises: NotFinite naming task and step."""
        self.losses.append(loss)
        if not math.isfinite(loss):
            raise NotFinite(
                f"The distance to the model of task {self.session.tasks[self.index]!r} is {loss} at step "
                f"{len(self.losses)} of {self.parameters.steps}, expected a finite number. Lower learning_rate (now "
                f"{self.parameters.learning_rate}), or look for NaN in the models."
            )
        steps = self.parameters.steps
        done, total = self.index * steps + len(self.losses), len(self.session.tasks) * steps
        self.session.on_step(Step(done=done, total=total, loss=loss))

    def start(self) -> Tensor:
        """Return where the modules begin, flat, float64: D uniform in ±1/√width, U zero, so that nothing is changed."""
        parts: list[Tensor] = []
        for place, width in self.task.widths.items():
            down = torch.empty(self.parameters.rank * width, dtype=torch.float64)
            bound = 1.0 / math.sqrt(width)
            down.uniform_(-bound, bound, generator=self.session.generator(f"surgery {place}", self.index))
            parts += [down, torch.zeros_like(down)]
        return torch.cat(parts)

    def unpack(self, point: Tensor) -> dict[str, SurgeryModule]:
        """Return the modules that lie in a point, D before U, place after place."""
        rank, widths = self.parameters.rank, self.task.widths
        parts: Iterator[Tensor] = iter(
            torch.split(point, [rank * width for width in widths.values() for _ in range(2)])
        )
        return {
            place: SurgeryModule(next(parts).view(rank, width), next(parts).view(width, rank))
            for place, width in widths.items()
        }
