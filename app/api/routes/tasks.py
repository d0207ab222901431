"""Tasks: what models are measured on."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.api.dependencies import ActorDep, IdempotencyDep, SessionsDep, WiringDep
from app.api.pages import CreatedAfterDep, CreatedBeforeDep, PageDep
from app.api.problems import problems
from app.api.schemas.tasks import TaskBody
from app.domain.errors import (
    CheckpointNotReady,
    InvalidParameters,
    NameTaken,
    NotFound,
    ResourceInUse,
    UnknownCheckpoint,
    UnknownTaskKind,
    UriNotAllowed,
    UriNotFound,
)
from app.domain.views.pages import Page
from app.domain.views.tasks import TaskView
from app.services import tasks
from app.services.tasks import TaskFilters

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])


@router.post(
    "",
    operation_id="create_task",
    summary="Make a task",
    status_code=201,
    responses={
        200: {"description": "The same content under the same name is already there.", "model": TaskView},
        **problems(
            UriNotFound,
            NameTaken,
            CheckpointNotReady,
            UnknownTaskKind,
            InvalidParameters,
            UnknownCheckpoint,
            UriNotAllowed,
        ),
    },
)
def create_task(
    body: TaskBody, response: Response, wiring: WiringDep, actor: ActorDep, idempotency: IdempotencyDep
) -> TaskView:
    """Make a task; its files are hashed now. Labels and columns are checked by the first job that reads them."""
    task, is_new = tasks.create(wiring, actor, body, idempotency)
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/tasks/{task.id}"
    return task


@router.get("", operation_id="list_tasks", summary="All tasks")
def list_tasks(
    page: PageDep,
    created_after: CreatedAfterDep,
    created_before: CreatedBeforeDep,
    sessions: SessionsDep,
    actor: ActorDep,
    kind: Annotated[str | None, Query(max_length=64, description="Only tasks of this kind.")] = None,
) -> Page[TaskView]:
    """List tasks."""
    return tasks.list_(sessions, actor, TaskFilters(kind, created_after, created_before), page)


@router.get("/{task}", operation_id="get_task", summary="One task", responses=problems(NotFound))
def get_task(task: str, response: Response, sessions: SessionsDep, actor: ActorDep) -> TaskView:
    """Give a task, by name or id."""
    found = tasks.get(sessions, actor, task)
    response.headers["ETag"] = f'"{found.digest}"'
    return found


@router.delete(
    "/{task}",
    operation_id="delete_task",
    summary="Delete a task",
    status_code=204,
    responses=problems(NotFound, ResourceInUse),
)
def delete_task(task: str, sessions: SessionsDep, actor: ActorDep) -> None:
    """Delete a task; what was measured on it stays."""
    tasks.delete(sessions, actor, task)
