"""Metrics: what was measured; and comparisons of checkpoints over tasks."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query

from app.api.dependencies import ActorDep, SessionsDep
from app.api.pages import CreatedAfterDep, CreatedBeforeDep, PageDep
from app.api.problems import problems
from app.domain.errors import CheckpointNotReady, FieldProblem, Invalid, UnknownCheckpoint, UnknownTask
from app.domain.requests import Split
from app.domain.views.metrics import ComparisonView, MetricView
from app.domain.views.pages import Page
from app.services import comparisons, metrics
from app.services.comparisons import ComparisonRequest
from app.services.metrics import MetricFilters

MAX_COMPARED = 200
MAX_TASKS = 128
MAX_LIST_CHARACTERS = 60_000

router = APIRouter(prefix="/v1", tags=["metrics"])


@router.get(
    "/metrics",
    operation_id="list_metrics",
    summary="Measured numbers",
    responses=problems(UnknownCheckpoint, CheckpointNotReady, UnknownTask),
)
def list_metrics(
    page: PageDep,
    created_after: CreatedAfterDep,
    created_before: CreatedBeforeDep,
    sessions: SessionsDep,
    actor: ActorDep,
    checkpoint: Annotated[str | None, Query(max_length=257, description="A ref.")] = None,
    task: Annotated[str | None, Query(max_length=128, description="A task's name or id.")] = None,
    name: Annotated[str | None, Query(max_length=64, description="accuracy, ….")] = None,
    job: Annotated[str | None, Query(max_length=64)] = None,
    split: Annotated[Split | None, Query()] = None,
    details: Annotated[bool, Query(description="With the counts, of each class too, behind each number.")] = False,
) -> Page[MetricView]:
    """List measured numbers."""
    filters = MetricFilters(checkpoint, task, name, job, split, created_after, created_before)
    return metrics.list_(sessions, actor, filters, page, has_details=details)


@router.get(
    "/comparisons",
    operation_id="compare_checkpoints",
    summary="Compare checkpoints",
    responses=problems(UnknownCheckpoint, CheckpointNotReady, UnknownTask),
)
def compare_checkpoints(
    sessions: SessionsDep,
    actor: ActorDep,
    checkpoints: Annotated[str, Query(min_length=1, max_length=MAX_LIST_CHARACTERS, description="Refs: a,b,c")],
    tasks: Annotated[str, Query(min_length=1, max_length=MAX_LIST_CHARACTERS, description="Names or ids: x,y")],
    split: Annotated[Split, Query()] = "test",
    metric: Annotated[str, Query(min_length=1, max_length=64)] = "accuracy",
    individual: Annotated[
        str | None,
        Query(
            max_length=MAX_LIST_CHARACTERS,
            description="Individually fine-tuned models, task:ref,…; default: the newest compared one with that task.",
        ),
    ] = None,
    cosines: Annotated[bool, Query(description="Add the cosines of the task vectors, from stored analyses.")] = False,
) -> ComparisonView:
    """Compare checkpoints over tasks: accuracy, standard error, and accuracy relative to the individual models."""
    request = ComparisonRequest(
        checkpoints=_split("checkpoints", checkpoints, MAX_COMPARED),
        tasks=_split("tasks", tasks, MAX_TASKS),
        split=split,
        metric=metric,
        individual=_pairs(individual),
        has_cosines=cosines,
    )
    return comparisons.compare(sessions, actor, request)


def _split(name: str, text: str, most: int) -> Sequence[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise _refused(name, "has an empty entry; write them as a,b,c")
    if len(set(parts)) < len(parts):
        raise _refused(name, f"names {next(part for part in parts if parts.count(part) > 1)!r} twice")
    if len(parts) > most:
        raise _refused(name, f"holds {len(parts)} entries; at most {most} are compared at once")
    return parts


def _pairs(text: str | None) -> dict[str, str]:
    if not text:
        return {}
    pairs = [part.strip().partition(":") for part in text.split(",")]
    if not all(task and colon and ref for task, colon, ref in pairs):
        raise _refused("individual", "must be written task:ref,task:ref")
    if len({task for task, _, _ in pairs}) < len(pairs):
        raise _refused("individual", "names a task twice")
    return {task: ref for task, _, ref in pairs}


def _refused(name: str, message: str) -> Invalid:
    return Invalid(f"{name} {message}.", errors=[FieldProblem(f"/query/{name}", message)])
