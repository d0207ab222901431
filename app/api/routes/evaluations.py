"""Evaluations: a checkpoint measured on tasks."""

from fastapi import APIRouter, Response

from app.api.dependencies import ActorDep, IdempotencyDep, WiringDep
from app.api.problems import problems
from app.api.schemas.evaluations import EvaluationBody
from app.domain.errors import CheckpointNotReady, UnknownBaseModel, UnknownCheckpoint, UnknownTask
from app.domain.views.jobs import JobView
from app.services import evaluations

router = APIRouter(prefix="/v1/evaluations", tags=["evaluations"])


@router.post(
    "",
    operation_id="create_evaluation",
    summary="Measure a checkpoint",
    status_code=202,
    responses=problems(CheckpointNotReady, UnknownBaseModel, UnknownCheckpoint, UnknownTask),
)
def create_evaluation(
    body: EvaluationBody, response: Response, wiring: WiringDep, actor: ActorDep, idempotency: IdempotencyDep
) -> JobView:
    """Accept an evaluation as a job; its numbers are metrics."""
    job = evaluations.submit(wiring, actor, body, idempotency)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job
