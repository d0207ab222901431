"""Sweeps: one merge at many points of its parameters."""

from fastapi import APIRouter, Response

from app.api.dependencies import ActorDep, IdempotencyDep, WiringDep
from app.api.problems import problems
from app.api.schemas.sweeps import SweepBody
from app.domain.errors import (
    CheckpointNotReady,
    IncompatibleCheckpoints,
    InvalidParameters,
    OutOfDisk,
    UnknownBaseModel,
    UnknownCheckpoint,
    UnknownMethod,
    UnknownTask,
)
from app.domain.views.jobs import JobView
from app.services import sweeps

router = APIRouter(prefix="/v1/sweeps", tags=["sweeps"])


@router.post(
    "",
    operation_id="create_sweep",
    summary="Find a merge's best parameters",
    status_code=202,
    responses=problems(
        CheckpointNotReady,
        UnknownMethod,
        InvalidParameters,
        UnknownCheckpoint,
        UnknownTask,
        UnknownBaseModel,
        IncompatibleCheckpoints,
        OutOfDisk,
    ),
)
def create_sweep(
    body: SweepBody, response: Response, wiring: WiringDep, actor: ActorDep, idempotency: IdempotencyDep
) -> JobView:
    """Accept a sweep as a job: its result is the best merge as a checkpoint, and the curve as a report."""
    job = sweeps.submit(wiring, actor, body, idempotency)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job
