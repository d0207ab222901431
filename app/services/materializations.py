"""Materializations: the dense model of one task out of a multitask artifact, as a checkpoint of its own."""

from pathlib import Path

from pydantic import JsonValue
from sqlalchemy.orm import Session

from app.db import artifacts, products
from app.db import checkpoints as checkpoint_rows
from app.db.products import Product
from app.domain.checkpoints import Manifest, Value
from app.domain.errors import FieldProblem, Invalid, ModulesNotFoldable, OutOfDisk, near_match
from app.domain.identifiers import MAX_NAME
from app.domain.jobs import JobKind
from app.domain.requests import MaterializationRequest
from app.domain.views.jobs import JobInputRef, JobView
from app.domain.work import CheckpointOutcome, MaterializeWork, Outcome
from app.services import inputs, jobs, measuring
from app.services.actors import Actor
from app.services.idempotency import IdempotentRequest, replay, store_answer
from app.services.running import Claim, JobResult, Keepers
from app.services.wiring import Wiring


class MaterializationSpec(Value):
    """A materialization's spec, refs pinned."""

    artifact: str
    checkpoint: str  # which the artifact is
    task: str
    output: dict[str, JsonValue]
    base_checkpoint: str | None


def submit(
    wiring: Wiring,
    actor: Actor,
    artifact_id: str,
    request: MaterializationRequest,
    idempotency: IdempotentRequest | None = None,
) -> JobView:
    """Accept a materialization.

    Raises: NotFound for an unknown artifact; Invalid for one that is not multitask, or has no patch for the task;
        ModulesNotFoldable for a patch with surgery modules; ArtifactGone; OutOfDisk; Replayed, IdempotencyKeyReused.
    """
    with wiring.sessions.begin() as session:
        replay(session, actor, idempotency)
        row = artifacts.find_checkpoint(session, actor.project_id, artifact_id)
        manifest = checkpoint_rows.load_manifest(session, row.id)
        _check_task(artifact_id, manifest, request.task)
        _check_disk(wiring, manifest)
        name = request.output.name or _default_name(row.name, request.task)
        spec = MaterializationSpec(
            artifact=artifact_id,
            checkpoint=row.id,
            task=request.task,
            output={"name": name, "tags": dict(request.output.tags)},
            base_checkpoint=row.base_checkpoint_id,
        )
        job = jobs.add(
            session,
            actor,
            kind=JobKind.MATERIALIZE,
            spec=spec.model_dump(mode="json"),
            inputs=[JobInputRef(role="model", position=0, checkpoint_id=row.id)],
            tags=dict(request.output.tags),
            **measuring.terms(wiring.defaults, request).model_dump(),
        )
        store_answer(session, actor, idempotency, job, f"/v1/jobs/{job.id}")
    jobs.hint(wiring.queue, [job])
    return job


class MaterializationSteps:
    """What a materialization does around its work."""

    def prepare(self, keepers: Keepers, claim: Claim, scratch: Path) -> MaterializeWork:
        """Bring the artifact here."""
        spec = MaterializationSpec.model_validate(claim.job.spec)
        return MaterializeWork(
            checkpoint=inputs.local(keepers, spec.checkpoint), task=spec.task, output=scratch / "output"
        )

    def record(self, session: Session, claim: Claim, outcome: Outcome) -> JobResult:
        """Keep the artifact and the named checkpoint."""
        if not isinstance(outcome, CheckpointOutcome):
            raise TypeError(f"a materialization gave {type(outcome).__name__}, expected CheckpointOutcome")
        spec = MaterializationSpec.model_validate(claim.job.spec)
        # No task: else comparisons would take it for the individually fine-tuned model.
        product = Product(claim.job.id, outcome.manifest, spec.output, spec.base_checkpoint)
        artifact_id, checkpoint_id = products.add(session, claim.actor, product)
        return JobResult(
            {
                "checkpoint": checkpoint_id,
                "artifacts": [artifact_id],
                "evaluations": [],
                "metrics": [],
                "data": {"task": spec.task, "artifact": spec.artifact},
            }
        )


steps = MaterializationSteps()


def _check_task(artifact_id: str, manifest: Manifest, task: str) -> None:
    labels = [patch.task for patch in manifest.patches]
    if not labels:
        message = f"{artifact_id} is {manifest.kind}, expected a multitask artifact; a dense one is a model as it is"
        raise Invalid(f"{message}.", errors=[FieldProblem("/path/artifact_id", message)])
    if task not in labels:
        message = f"{artifact_id} has no patch for task {task!r}; it has: {', '.join(labels)}"
        raise Invalid(f"/task: {message}.", errors=[FieldProblem("/task", message, near_match(task, labels))])
    places = next(patch.modules for patch in manifest.patches if patch.task == task)
    if places:
        shown = ", ".join(places[:3]) + (", …" if len(places) > 3 else "")
        message = (
            f"the patch of {task} holds surgery modules ({shown}), which no change of weights can stand for; evaluate "
            "the artifact as it is, or run its shared model with the modules as docs/patches.md shows"
        )
        raise ModulesNotFoldable(f"/task: {message}.", errors=[FieldProblem("/task", message)])


def _check_disk(wiring: Wiring, manifest: Manifest) -> None:
    needed = sum(tensor.size_bytes for tensor in manifest.tensors)
    free = wiring.storage.free_bytes()
    if free is not None and free < needed:
        raise OutOfDisk(
            f"The model takes {needed:,} bytes, and the store has {free:,} left. Delete artifacts that nothing needs,"
            " or give the store more room."
        )


def _default_name(name: str, task: str) -> str:
    suffix = f"-{task}"
    return name[: MAX_NAME - len(suffix)] + suffix if len(suffix) < MAX_NAME else task
