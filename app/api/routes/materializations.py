"""Materializations: dense models out of multitask artifacts."""

from typing import Annotated

from fastapi import APIRouter, Path, Response

from app.api.dependencies import ActorDep, IdempotencyDep, WiringDep
from app.api.problems import problems
from app.api.schemas.materializations import MaterializationBody
from app.domain.errors import ArtifactGone, ModulesNotFoldable, NotFound, OutOfDisk
from app.domain.views.jobs import JobView
from app.services import materializations

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])


@router.post(
    "/{artifact_id}/materializations",
    operation_id="create_materialization",
    summary="Write the models of tasks",
    status_code=202,
    responses=problems(NotFound, ArtifactGone, ModulesNotFoldable, OutOfDisk),
)
def create_materialization(
    artifact_id: Annotated[str, Path(description="A multitask artifact's id.")],
    body: MaterializationBody,
    response: Response,
    wiring: WiringDep,
    actor: ActorDep,
    idempotency: IdempotencyDep,
) -> JobView:
    """Accept, as a job, to write the dense models of tasks of a multitask artifact; each becomes a checkpoint."""
    job = materializations.submit(wiring, actor, artifact_id, body, idempotency)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job
