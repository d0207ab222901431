"""Merges and their plans."""

from fastapi import APIRouter, Depends, Response

from app.api.dependencies import ActorDep, IdempotencyDep, WiringDep, accept_key
from app.api.mergekit_documents import MergeRoute
from app.api.problems import problems
from app.api.schemas.merges import MergeBody
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
from app.domain.views.plans import PlanView
from app.services import merges

router = APIRouter(prefix="/v1", tags=["merges"], route_class=MergeRoute)

REFUSALS = (
    CheckpointNotReady,
    UnknownMethod,
    InvalidParameters,
    UnknownCheckpoint,
    UnknownTask,
    UnknownBaseModel,
)


@router.post(
    "/merges",
    operation_id="create_merge",
    summary="Merge checkpoints",
    status_code=202,
    responses=problems(*REFUSALS, IncompatibleCheckpoints, OutOfDisk),
)
def create_merge(
    body: MergeBody, response: Response, wiring: WiringDep, actor: ActorDep, idempotency: IdempotencyDep
) -> JobView:
    """Accept a merge as a job; its result is a checkpoint, an artifact, and the evaluations asked for."""
    job = merges.submit(wiring, actor, body, idempotency)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


@router.post(
    "/plans",
    operation_id="plan_merge",
    summary="Say what a merge would do",
    dependencies=[Depends(accept_key)],
    responses=problems(*REFUSALS),
)
def plan_merge(body: MergeBody, wiring: WiringDep, actor: ActorDep) -> PlanView:
    """Pin, check and estimate a merge without storing anything."""
    return merges.plan(wiring, actor, body)
