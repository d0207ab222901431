"""Fine-tunings: a base model trained on one task."""

from fastapi import APIRouter, Response

from app.api.dependencies import ActorDep, IdempotencyDep, WiringDep
from app.api.problems import problems
from app.api.schemas.finetunes import FinetuneBody
from app.domain.errors import (
    CheckpointNotReady,
    InvalidParameters,
    UnknownBaseModel,
    UnknownCheckpoint,
    UnknownTask,
    UnknownTechnique,
)
from app.domain.views.jobs import JobView
from app.services import finetunes

router = APIRouter(prefix="/v1/finetunes", tags=["fine-tunings"])


@router.post(
    "",
    operation_id="create_finetune",
    summary="Fine-tune a base model",
    status_code=202,
    responses=problems(
        CheckpointNotReady, InvalidParameters, UnknownBaseModel, UnknownCheckpoint, UnknownTask, UnknownTechnique
    ),
)
def create_finetune(
    body: FinetuneBody, response: Response, wiring: WiringDep, actor: ActorDep, idempotency: IdempotencyDep
) -> JobView:
    """Accept a fine-tuning as a job; its result is a checkpoint."""
    job = finetunes.submit(wiring, actor, body, idempotency)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job
