"""What an analysis is: two functions and a card. `examine` finds data, `draw` makes a figure of nothing but that data.

A file of workers/analyses/ holds one. An analysis without tasks reads task vectors as a stream of pieces and runs
anywhere; one with tasks merges in memory and measures on a bench. Neither sees a path: files and progress belong to the
pipeline.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from app.domain.catalog import AnalysisCard, TasksNeeded
from app.domain.parameters import NestedMethod, Parameters, schema_of
from app.domain.tasks import Measurement


class Found(BaseModel):
    """What an analysis found: the data of its report. Numbers that are not defined are None."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    only_in_file: ClassVar[frozenset[str]] = frozenset()  # fields too large for the job's result


@dataclass(frozen=True)
class Names:
    """What models and tasks are called in a figure, in the request's order."""

    models: tuple[str, ...]
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Classified:
    """What a model makes of some examples, on the CPU."""

    logits: Tensor  # [n, n_classes] float32
    labels: Tensor  # [n] int64


class Merged(Protocol):
    """A merge, to be measured on the bench's tasks while its block lasts. task: index."""

    def measure(self, task: int, split: str | None = None) -> Measurement:
        """Return the task's metric over a whole split; None: the one that was asked for."""

    def classify(self, task: int, max_examples: int) -> Classified:
        """Return the logits of evenly spaced examples of the split that was asked for, in their order."""

    def embed(self, task: int, max_examples: int) -> Tensor:
        """Return the features of the same examples, [n, width] float32. Raises: HeadMismatch where there are none."""


class Bench(Protocol):
    """Merges in memory, and measures the merges on tasks; nothing of it is stored."""

    @property
    def n_models(self) -> int:
        """How many models there are to merge."""

    @property
    def n_tasks(self) -> int:
        """How many tasks there are to measure on."""

    def expect(self, n_runs: int) -> None:
        """Say how often `measure`, `classify` and `embed` will be called, for the progress."""

    def check(self, method: NestedMethod, n_models: int) -> None:
        """Check that a method can merge so many models in memory. Raises: InvalidParameters, Invalid."""

    def count_models(self, method: NestedMethod) -> tuple[int, int]:
        """Return how few and how many of the bench's models a method takes."""

    def merge(self, method: NestedMethod, models: Sequence[int]) -> AbstractContextManager[Merged]:
        """Merge some models, by index, with weights of 1."""

    def take(self, method: NestedMethod) -> AbstractContextManager[Merged]:
        """Take the merge that was named to be looked at; where none was, merge all models."""

    def combine(self, coefficients: Sequence[float]) -> AbstractContextManager[Merged]:
        """Give θ₀ + Σᵢ cᵢ τᵢ, one coefficient for each model; zeros alone give the base model, to the bit."""


@dataclass(frozen=True)
class Analysis:
    """An analysis as the pipeline takes it."""

    card: AnalysisCard
    parameters: type[Parameters]
    found: type[Found]
    examine: Callable[..., Found]  # (source of pieces, parameters), see `steps`; with tasks (bench, parameters)
    draw: Callable[..., Any]  # (found, names) -> matplotlib's Figure, which this module need not know
    count_passes: Callable[[Any], int]  # of its parameters: how often it reads the task vectors, for the progress


def analysis(
    *,
    name: str,
    title: str,
    summary: str,
    source: str,
    parameters: type[Parameters],
    found: type[Found],
    draw: Callable[..., Any],
    models: tuple[int, int | None] = (1, None),
    tasks: TasksNeeded = "none",
    observes: bool = False,
    tunes: bool = False,
    nested: Sequence[str] = (),
    merges_subsets: bool = False,
    takes_merged: bool = False,
    steps: Sequence[str] = (),
    version: int = 1,
    count_passes: Callable[[Any], int] | None = None,
) -> Callable[[Callable[..., Found]], Analysis]:
    """Turn `examine(subject, parameters) -> Found` into an analysis with its card.

    subject: a contract.PieceSource with a base model, or where tasks are needed a Bench.
    nested: parameters of type NestedMethod; merges_subsets: by which some of the models are merged, too.
    takes_merged: it looks at what Bench.take gives, which may be a merge that was there before.
    steps: parameters that are lists of NestedStep; `examine` is given a third argument, the source through them, None
    where there are none. version: raised whenever the same input gives other data.
    """
    card = AnalysisCard(
        name=name,
        version=version,
        title=title,
        summary=summary,
        source=source,
        min_models=models[0],
        max_models=models[1],
        tasks=tasks,
        observes=observes,
        tunes=tunes,
        nested=tuple(nested),
        merges_subsets=merges_subsets,
        takes_merged=takes_merged,
        steps=tuple(steps),
        parameters=schema_of(parameters),
        data=schema_of(found),
    )

    def decorate(function: Callable[..., Found]) -> Analysis:
        return Analysis(card, parameters, found, function, draw, count_passes or _once)

    return decorate


def summarize(found: Found) -> Mapping[str, Any]:
    """Return the data as JSON, without what only the report's file holds."""
    return found.model_dump(mode="json", exclude=set(found.only_in_file))


def _once(_parameters: Parameters) -> int:
    return 1
