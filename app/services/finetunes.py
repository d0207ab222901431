"""Fine-tunings: a base model trained on one task becomes a checkpoint of its own, dense or an adapter."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue
from sqlalchemy.orm import Session

from app.db import bases, metrics, products
from app.db import checkpoints as checkpoint_rows
from app.db import tasks as task_rows
from app.db.products import Product
from app.db.tables import Checkpoint, Task
from app.domain.catalog import EvaluatorCard, FinetunerCard
from app.domain.checkpoints import CheckpointKind, Value
from app.domain.errors import FieldProblem, Invalid
from app.domain.identifiers import MAX_NAME
from app.domain.jobs import JobKind
from app.domain.requests import FinetuneRequest
from app.domain.views.jobs import JobInputRef, JobView
from app.domain.work import CheckpointOutcome, FinetuneWork, Outcome
from app.services import inputs, jobs, measuring, task_files
from app.services.actors import Actor
from app.services.idempotency import IdempotentRequest, replay, store_answer
from app.services.running import Claim, JobResult, Keepers, kept_folder
from app.services.wiring import Wiring


class FinetuneSpec(Value):
    """A fine-tuning job's spec: the request with its refs pinned."""

    base_model: str
    head_base_model: str
    task: str  # name
    task_id: str
    technique: str
    parameters: dict[str, JsonValue]
    seed: int
    output: dict[str, JsonValue]
    family: str | None = None


def submit(
    wiring: Wiring, actor: Actor, request: FinetuneRequest, idempotency: IdempotentRequest | None = None
) -> JobView:
    """Accept a fine-tuning.

    Raises: UnknownTechnique, InvalidParameters, UnknownCheckpoint, CheckpointNotReady, UnknownTask, UnknownBaseModel,
        Invalid; Replayed, IdempotencyKeyReused.
    """
    card, parameters = wiring.catalog.check_finetune(request.technique, request.parameters)
    with wiring.sessions.begin() as session:
        replay(session, actor, idempotency)
        asked = [("/base_model", request.base_model), *([("/family", request.family)] if request.family else [])]
        base, *family = checkpoint_rows.resolve(session, actor.project_id, asked)
        task = task_rows.resolve(session, actor.project_id, [("/task", request.task)])[0]
        _refuse([*_base_faults(base, task, wiring.catalog.evaluator(task.kind)), *_validation_faults(parameters, task)])
        _refuse([fault for one in family for fault in _family_faults(session, one, base, card, parameters)])
        pinned = measuring.pin_bases(session, [(task, "train")], default=bases.root(session, base.id), pointer="/task")
        name = request.output.name or _default_name(task.name, card.name)
        spec = FinetuneSpec(
            base_model=base.id,
            head_base_model=pinned[0].base_model or base.id,
            task=task.name,
            task_id=task.id,
            technique=card.name,
            parameters=parameters,
            seed=request.seed,
            output={"name": name, "tags": dict(request.output.tags)},
            family=family[0].id if family else None,
        )
        job = jobs.add(
            session,
            actor,
            kind=JobKind.FINETUNE,
            spec=spec.model_dump(mode="json"),
            inputs=[
                JobInputRef(role="base_model", position=0, checkpoint_id=base.id),
                *measuring.head_inputs(pinned),
                *(JobInputRef(role="model", position=0, checkpoint_id=one.id) for one in family),
            ],
            tags=dict(request.output.tags),
            **measuring.terms(wiring.defaults, request).model_dump(),
        )
        store_answer(session, actor, idempotency, job, f"/v1/jobs/{job.id}")
    jobs.hint(wiring.queue, [job])
    return job


class FinetuneSteps:
    """What a fine-tuning job does around its work."""

    def prepare(self, keepers: Keepers, claim: Claim, scratch: Path) -> FinetuneWork:
        """Bring the base models and the task's files here."""
        spec = FinetuneSpec.model_validate(claim.job.spec)
        here = {
            checkpoint_id: inputs.local(keepers, checkpoint_id)
            for checkpoint_id in dict.fromkeys([spec.base_model, spec.head_base_model])
        }
        return FinetuneWork(
            base_model=here[spec.base_model],
            head_base_model=here[spec.head_base_model],
            task=task_files.fetch(keepers, spec.task_id, ["train", "validation"]),
            technique=spec.technique,
            parameters=spec.parameters,
            seed=spec.seed,
            output=scratch / "output",
            family=None if spec.family is None else inputs.local(keepers, spec.family),
            kept=kept_folder(scratch),
        )

    def record(self, session: Session, claim: Claim, outcome: Outcome) -> JobResult:
        """Keep the artifact, the named checkpoint, and what was measured on validation."""
        if not isinstance(outcome, CheckpointOutcome):
            raise TypeError(f"a fine-tuning gave {type(outcome).__name__}, expected CheckpointOutcome")
        spec = FinetuneSpec.model_validate(claim.job.spec)
        product = Product(claim.job.id, outcome.manifest, spec.output, spec.base_model, spec.task)
        artifact_id, checkpoint_id = products.add(session, claim.actor, product)
        made = metrics.add(
            session,
            claim.actor.project_id,
            job_id=claim.job.id,
            checkpoint_id=checkpoint_id,
            measurements=outcome.measurements,
        )
        return JobResult(
            {
                "checkpoint": checkpoint_id,
                "artifacts": [artifact_id],
                "evaluations": [],
                "metrics": [metric.model_dump(mode="json") for metric in made if metric.step is None],
                "data": outcome.report,
            }
        )


steps = FinetuneSteps()


def _default_name(task: str, technique: str) -> str:
    suffix = f"-{technique.replace('_', '-')}"
    return task[: MAX_NAME - len(suffix)] + suffix


def _refuse(faults: list[FieldProblem]) -> None:
    if faults:
        raise Invalid(f"{faults[0].pointer}: {faults[0].message}.", errors=faults)


def _base_faults(base: Checkpoint, task: Task, card: EvaluatorCard) -> list[FieldProblem]:
    faults: list[FieldProblem] = []
    if base.kind != CheckpointKind.DENSE:
        faults.append(FieldProblem("/base_model", f"{base.name!r} is of kind {base.kind}; name a dense checkpoint"))
    spec = task_rows.spec(task)
    if "train" not in spec.dataset:
        known = ", ".join(sorted(spec.dataset))
        faults.append(FieldProblem("/task", f"task {task.name!r} has no train split; it has {known}"))
    if spec.head.kind not in card.trainable_heads:
        use = " or ".join(card.trainable_heads) or "a task of another kind"
        message = f"task {task.name!r} has head {spec.head.kind!r}, which nothing is trained under; use {use}"
        faults.append(FieldProblem("/task", message))
    return faults


def _validation_faults(parameters: Mapping[str, JsonValue], task: Task) -> list[FieldProblem]:
    """Return what is wrong with the parameters that need validations, which every technique has."""
    if parameters.get("validate_every") is not None:
        if "validation" in task_rows.spec(task).dataset:
            return []
        message = f"task {task.name!r} has no validation split; leave it out, or make a task with one"
        return [FieldProblem("/parameters/validate_every", message)]
    idle = {"early_stopping_patience": None, "keep": "last"}
    asking = [name for name, value in idle.items() if parameters.get(name, value) != value]
    message = "it needs validations; give validate_every, a number of steps"
    return [FieldProblem(f"/parameters/{name}", message) for name in asking]


def _family_faults(
    session: Session, family: Checkpoint, base: Checkpoint, card: FinetunerCard, parameters: Mapping[str, JsonValue]
) -> list[FieldProblem]:
    """Return why an adapter cannot begin where the family's did; its files are looked at by the job."""
    if not card.keeps_start:
        message = f"adapters made with {card.name} do not tell where they began; use linearized_lora, or leave it out"
        return [FieldProblem("/family", message)]
    faults: list[FieldProblem] = []
    own_base = None if family.base_checkpoint_id is None else session.get(Checkpoint, family.base_checkpoint_id)
    if family.kind != CheckpointKind.ADAPTER:
        message = f"{family.name!r} is of kind {family.kind}; name an adapter trained with {card.name}"
        faults.append(FieldProblem("/family", message))
    elif own_base is None or own_base.weights_digest != base.weights_digest:
        found = "without a base_checkpoint" if own_base is None else f"on {own_base.name!r}"
        message = f"{family.name!r} is an adapter {found}, expected one on {base.name!r}; one family has one base"
        faults.append(FieldProblem("/family", message))
    if parameters.get("init_seed") is not None:
        message = "the family says where the factors begin; leave out one of family and init_seed"
        faults.append(FieldProblem("/parameters/init_seed", message))
    return faults
