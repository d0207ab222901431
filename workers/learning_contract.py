"""What a method that learns gets, and what it gives back.

A learner runs once, before the merge streams: `learn(parameters, session) -> Learned`. It sees the merge set as the
method will (behind the recipe's transforms) and the tasks that the recipe names, each as a model that can be run on one
split. What it returns stands in `context.learned` when the method merges, is told in the job's result, and lies in the
artifact as files that take its place in a later merge.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from pydantic import JsonValue
from torch import nn

from app.domain.checkpoints import FileEntry
from workers.contract import MergeContext, MergeMethod, PieceSource
from workers.model_contract import Probe, Step
from workers.surgery import Modules


@dataclass(frozen=True)
class Factors:
    """A tensor of the base that every adapter lies on: its factors, by their names in the merge set."""

    a: str  # [r, in]; a kernel's positions are columns
    b: str  # [out, r]
    scaling: float  # of all adapters
    is_transposed: bool  # the base stores [in, out]


class LearningSession(Protocol):
    """The merge set, the tasks, and where to run models."""

    @property
    def source(self) -> PieceSource:
        """The merge set, as the method sees it; read it as often as needed, on the caller's thread."""

    @property
    def factors(self) -> Mapping[str, Factors]:
        """Where adapters are merged in the space of their factors: what the merge set is of, by the base's tensors.

        Empty where its tensors are those of the models.
        """

    @property
    def context(self) -> MergeContext:
        """Of no tensor yet: the seed, the models' keys, and the statistics that `collect` asked for."""

    @property
    def tasks(self) -> Sequence[str]:
        """Names of the tasks: one per model, in the models' order, or those that the whole merge is tried on."""

    @property
    def device(self) -> torch.device:
        """Where models are run."""

    @property
    def scratch(self) -> Path:
        """A folder for files that are written while learning, on the disk of the artifact."""

    def open(self, task: int, *, model: int | None = None) -> Probe:
        """Return a task with a model of its own to run: the base model, or one of the models that are merged.

        The base model stands for whatever its weights are replaced with; under a head of its own (`own`) it is the
        task's model, since the head lies there. The examples are those that the recipe allows.
        Raises: HeadMismatch, InvalidDataset, InputChanged, ModelNotRunnable.
        """

    def places(self, module: nn.Module) -> Mapping[str, str]:
        """Return, per parameter and buffer of a runnable model by its path, the tensor of the merge set that it holds.

        Raises: ModelNotRunnable when a weight of the model's body has no tensor in the files.
        """

    def generator(self, purpose: str, task: int) -> torch.Generator:
        """Return a generator keyed by (seed, purpose, content of the task), whatever the order of the models."""

    def on_step(self, step: Step) -> None:
        """Report a step."""

    def on_count(self, done: int, total: int) -> None:
        """Report how much is done, where there is no loss to tell."""


class Learned(Protocol):
    """What a learner found: coefficients, statistics, masks."""

    def report(self) -> dict[str, JsonValue]:
        """Return what is worth knowing, as JSON."""

    def write(self, folder: Path) -> Sequence[FileEntry]:
        """Write it into the artifact's folder, in the form that the method's parameter takes; return the files."""


@runtime_checkable
class HasModules(Protocol):
    """What a learner found, where it runs beside the weights: it goes into the patches of a multitask artifact."""

    @property
    def of_tasks(self) -> Sequence[Modules]:
        """The surgery modules of each task, in the models' order."""


Learner = Callable[[Any, LearningSession], Learned]  # Any: the method's own parameters class
Learn = Callable[[MergeMethod, Any, PieceSource, MergeContext], Learned]
"""(method, parameters, source, context): how a pipeline runs a learner, with a session around the source."""
