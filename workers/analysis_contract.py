"""What an analysis is: two functions and a card. `examine` finds data, `draw` makes a figure of nothing but that data.

A file of workers/analyses/ holds one. An analysis without tasks reads task vectors as a stream of pieces and runs
anywhere; one with tasks merges in memory and measures on a bench. Neither sees a path: files and progress belong to the
pipeline.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from app.domain.catalog import AnalysisCard, TasksNeeded
from app.domain.parameters import Parameters, schema_of


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
class Analysis:
    """An analysis as the pipeline takes it."""

    card: AnalysisCard
    parameters: type[Parameters]
    found: type[Found]
    examine: Callable[..., Found]  # (source of pieces, parameters); with tasks (bench, parameters)
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
    tunes: bool = False,
    nested: Sequence[str] = (),
    version: int = 1,
    count_passes: Callable[[Any], int] | None = None,
) -> Callable[[Callable[..., Found]], Analysis]:
    """Turn `examine(subject, parameters) -> Found` into an analysis with its card.

    subject: a contract.PieceSource with a base model, or where tasks are needed a Bench.
    nested: parameters of type NestedMethod. version: raised whenever the same input gives other data.
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
        tunes=tunes,
        nested=tuple(nested),
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
