"""Analyses: looking at models without changing them."""

from fastapi import APIRouter, Response

from app.api.dependencies import ActorDep, IdempotencyDep, WiringDep
from app.api.problems import problems
from app.api.schemas.analyses import AnalysisBody
from app.domain.errors import (
    CheckpointNotReady,
    IncompatibleCheckpoints,
    Invalid,
    InvalidParameters,
    UnknownAnalysis,
    UnknownBaseModel,
    UnknownCheckpoint,
    UnknownMethod,
    UnknownTask,
)
from app.domain.views.jobs import JobView
from app.services import analyses

router = APIRouter(prefix="/v1/analyses", tags=["analyses"])


@router.post(
    "",
    operation_id="create_analysis",
    summary="Analyze models",
    status_code=202,
    responses=problems(
        CheckpointNotReady,
        IncompatibleCheckpoints,
        Invalid,
        InvalidParameters,
        UnknownAnalysis,
        UnknownBaseModel,
        UnknownCheckpoint,
        UnknownMethod,
        UnknownTask,
    ),
)
def create_analysis(
    body: AnalysisBody, response: Response, wiring: WiringDep, actor: ActorDep, idempotency: IdempotencyDep
) -> JobView:
    """Accept an analysis as a job; its result is a report: data as JSON, and a figure as SVG and PNG."""
    job = analyses.submit(wiring, actor, body, idempotency)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job
