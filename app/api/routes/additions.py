"""Additions: tasks added to merged artifacts, without the models that they were made of."""

from typing import Annotated

from fastapi import APIRouter, Path, Response

from app.api.dependencies import ActorDep, IdempotencyDep, WiringDep
from app.api.problems import problems
from app.api.schemas.additions import TaskAdditionBody
from app.domain.errors import (
    ArtifactGone,
    CheckpointNotReady,
    IncompatibleCheckpoints,
    NotFound,
    OutOfDisk,
    UnknownBaseModel,
    UnknownCheckpoint,
    UnknownTask,
)
from app.domain.views.jobs import JobView
from app.services import merges

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])


@router.post(
    "/{artifact_id}/tasks",
    operation_id="add_artifact_tasks",
    summary="Add tasks to a merged artifact",
    status_code=202,
    responses=problems(
        NotFound,
        ArtifactGone,
        CheckpointNotReady,
        IncompatibleCheckpoints,
        OutOfDisk,
        UnknownBaseModel,
        UnknownCheckpoint,
        UnknownTask,
    ),
)
def add_artifact_tasks(
    artifact_id: Annotated[str, Path(description="The id of an artifact that a merge made.")],
    body: TaskAdditionBody,
    response: Response,
    wiring: WiringDep,
    actor: ActorDep,
    idempotency: IdempotencyDep,
) -> JobView:
    """Accept, as a merge, to add models to an artifact whose method allows it (`task_addition` of its card).

    The artifact stays as it is; the result is an artifact of its own.
    """
    job = merges.add_tasks(wiring, actor, artifact_id, body, idempotency)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job
