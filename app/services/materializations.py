"""Materializations: the dense models of tasks out of a multitask artifact, as checkpoints of their own."""

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
from app.domain.work import MaterializeOutcome, MaterializeWork, Outcome
from app.services import inputs, jobs, measuring
from app.services.actors import Actor
from app.services.idempotency import IdempotentRequest, replay, store_answer
from app.services.running import Claim, JobResult, Keepers
from app.services.wiring import Wiring


class MaterializedTask(Value):
    """One of several tasks, and the name of its model."""

    task: str
    name: str


class MaterializationSpec(Value):
    """A materialization's spec, refs pinned."""

    artifact: str
    checkpoint: str  # which the artifact is
    task: str | None = None
    tasks: tuple[MaterializedTask, ...] = ()  # where there are several
    output: dict[str, JsonValue]
    base_checkpoint: str | None

    @property
    def models(self) -> tuple[MaterializedTask, ...]:
        """What is made."""
        if self.task is None:
            return self.tasks
        return (MaterializedTask(task=self.task, name=str(self.output["name"])),)


def submit(
    wiring: Wiring,
    actor: Actor,
    artifact_id: str,
    request: MaterializationRequest,
    idempotency: IdempotentRequest | None = None,
) -> JobView:
    """Accept a materialization.

    Raises: NotFound for an unknown artifact; Invalid for one that is not multitask, or has no patch for a task;
        ModulesNotFoldable for a patch with surgery modules; ArtifactGone; OutOfDisk; Replayed, IdempotencyKeyReused.
    """
    with wiring.sessions.begin() as session:
        replay(session, actor, idempotency)
        row = artifacts.find_checkpoint(session, actor.project_id, artifact_id)
        manifest = checkpoint_rows.load_manifest(session, row.id)
        tasks = request.tasks if request.task is None else [request.task]
        for task, pointer in zip(tasks, _pointers(request), strict=True):
            _check_task(artifact_id, manifest, task, pointer)
        _check_disk(wiring, manifest, len(tasks))
        name = request.output.name or (row.name if request.task is None else _name(row.name, request.task))
        spec = MaterializationSpec(
            artifact=artifact_id,
            checkpoint=row.id,
            task=request.task,
            tasks=tuple(MaterializedTask(task=task, name=_name(name, task)) for task in request.tasks),
            output={"name": name, "tags": dict(request.output.tags)},
            base_checkpoint=row.base_checkpoint_id,
        )
        job = jobs.add(
            session,
            actor,
            kind=JobKind.MATERIALIZE,
            spec=spec.model_dump(mode="json", exclude_defaults=True),
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
            checkpoint=inputs.local(keepers, spec.checkpoint),
            tasks=tuple(model.task for model in spec.models),
            output=scratch / "output",
        )

    def record(self, session: Session, claim: Claim, outcome: Outcome) -> JobResult:
        """Keep the artifacts and the named checkpoints."""
        if not isinstance(outcome, MaterializeOutcome):
            raise TypeError(f"a materialization gave {type(outcome).__name__}, expected MaterializeOutcome")
        spec = MaterializationSpec.model_validate(claim.job.spec)
        made = []
        for model, manifest in zip(spec.models, outcome.manifests, strict=True):
            # No task: else comparisons would take it for the individually fine-tuned model.
            product = Product(claim.job.id, manifest, {**spec.output, "name": model.name}, spec.base_checkpoint)
            made.append(products.add(session, claim.actor, product))
        about: dict[str, JsonValue] = {"task": spec.task}
        if spec.task is None:
            checkpoints = zip(spec.models, made, strict=True)
            about = {"checkpoints": {model.task: checkpoint for model, (_, checkpoint) in checkpoints}}
        return JobResult(
            {
                "checkpoint": None if spec.task is None else made[0][1],
                "artifacts": [artifact for artifact, _ in made],
                "evaluations": [],
                "metrics": [],
                "data": {**about, "artifact": spec.artifact},
            }
        )


steps = MaterializationSteps()


def _pointers(request: MaterializationRequest) -> list[str]:
    return ["/task"] if request.task is not None else [f"/tasks/{place}" for place in range(len(request.tasks))]


def _check_task(artifact_id: str, manifest: Manifest, task: str, pointer: str) -> None:
    labels = [patch.task for patch in manifest.patches]
    if not labels:
        message = f"{artifact_id} is {manifest.kind}, expected a multitask artifact; a dense one is a model as it is"
        raise Invalid(f"{message}.", errors=[FieldProblem("/path/artifact_id", message)])
    if task not in labels:
        message = f"{artifact_id} has no patch for task {task!r}; it has: {', '.join(labels)}"
        raise Invalid(f"{pointer}: {message}.", errors=[FieldProblem(pointer, message, near_match(task, labels))])
    places = next(patch.modules for patch in manifest.patches if patch.task == task)
    if places:
        shown = ", ".join(places[:3]) + (", …" if len(places) > 3 else "")
        message = (
            f"the patch of {task} holds surgery modules ({shown}), which no change of weights can stand for; evaluate "
            "the artifact as it is, or run its shared model with the modules as docs/patches.md shows"
        )
        raise ModulesNotFoldable(f"{pointer}: {message}.", errors=[FieldProblem(pointer, message)])


def _check_disk(wiring: Wiring, manifest: Manifest, n_models: int) -> None:
    needed = n_models * sum(tensor.size_bytes for tensor in manifest.tensors)
    free = wiring.storage.free_bytes()
    if free is not None and free < needed:
        what = "model takes" if n_models == 1 else f"{n_models} models take"
        raise OutOfDisk(
            f"The {what} {needed:,} bytes, and the store has {free:,} left. Delete artifacts that nothing needs,"
            " or give the store more room."
        )


def _name(name: str, task: str) -> str:
    suffix = f"-{task}"
    return name[: MAX_NAME - len(suffix)] + suffix if len(suffix) < MAX_NAME else task
