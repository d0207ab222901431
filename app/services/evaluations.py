"""Evaluations: a checkpoint measured on tasks, and the metrics that come of it."""

from pathlib import Path

from sqlalchemy.orm import Session

from app.db import bases
from app.db import checkpoints as checkpoint_rows
from app.db.tables import Checkpoint
from app.domain.checkpoints import CheckpointKind
from app.domain.errors import FieldProblem, InputChanged, Invalid
from app.domain.requests import EvaluationRequest
from app.domain.views.jobs import JobView
from app.domain.work import EvaluateOutcome, EvaluateWork, Outcome, PatchedTasks
from app.services import inputs, jobs, measuring, task_files
from app.services.actors import Actor
from app.services.idempotency import IdempotentRequest, replay, store_answer
from app.services.measuring import EvaluationSpec
from app.services.running import Claim, JobResult, Keepers
from app.services.wiring import Wiring


def submit(
    wiring: Wiring, actor: Actor, request: EvaluationRequest, idempotency: IdempotentRequest | None = None
) -> JobView:
    """Accept an evaluation.

    Raises: UnknownCheckpoint, CheckpointNotReady, UnknownTask, UnknownBaseModel, Invalid; Replayed,
        IdempotencyKeyReused.
    """
    with wiring.sessions.begin() as session:
        replay(session, actor, idempotency)
        checkpoint = checkpoint_rows.resolve(session, actor.project_id, [("/checkpoint", request.checkpoint)])[0]
        found = measuring.pin_items(session, actor.project_id, request.tasks, pointer="/tasks", split=request.split)
        measuring.check_runnable(checkpoint, request.checkpoint, pointer="/checkpoint")
        base = bases.root(session, checkpoint.id)
        items = measuring.pin_bases(session, found, default=base, pointer="/tasks")
        _check_once([item.task for item in items])
        items = measuring.pin_patches_of(session, checkpoint, items, pointer="/tasks")
        spec = EvaluationSpec(checkpoint=checkpoint.id, tasks=items)
        job = measuring.add_evaluation(
            session, actor, spec, measuring.terms(wiring.defaults, request), is_forced=request.force
        )
        store_answer(session, actor, idempotency, job, f"/v1/jobs/{job.id}")
    jobs.hint(wiring.queue, [job])
    return job


class EvaluationSteps:
    """What an evaluation job does around its work."""

    def prepare(self, keepers: Keepers, claim: Claim, scratch: Path) -> EvaluateWork:
        """Bring the checkpoint, the base models and the tasks' files here."""
        spec = EvaluationSpec.model_validate(claim.job.spec)
        items = [item for item in spec.tasks if item.measured_by is None]
        base_of = {item.task_id: item.base_model or spec.checkpoint for item in items}
        here = {
            checkpoint_id: inputs.local(keepers, checkpoint_id)
            for checkpoint_id in dict.fromkeys([spec.checkpoint, *base_of.values()])
        }
        labels = {item.task_id: item.patch for item in items if item.patch is not None}
        adapter_base = None
        if here[spec.checkpoint].manifest.kind is CheckpointKind.ADAPTER:
            adapter_base = inputs.local(keepers, _base_of(keepers, spec.checkpoint))
        return EvaluateWork(
            checkpoint=here[spec.checkpoint],
            tasks=tuple(task_files.fetch(keepers, item.task_id, [item.split]) for item in items),
            base_models={task_id: here[base] for task_id, base in base_of.items()},
            split={item.task_id: item.split for item in items},
            patched=PatchedTasks(labels=labels, scratch=scratch / "output") if labels else None,
            adapter_base=adapter_base,
            scratch=scratch / "fused",
        )

    def record(self, session: Session, claim: Claim, outcome: Outcome) -> JobResult:
        """Keep the metrics."""
        if not isinstance(outcome, EvaluateOutcome):
            raise TypeError(f"an evaluation gave {type(outcome).__name__}, expected EvaluateOutcome")
        spec = EvaluationSpec.model_validate(claim.job.spec)
        project_id, job_id = claim.actor.project_id, claim.job.id
        return JobResult(measuring.keep_measurements(session, project_id, job_id, spec, outcome.measurements))


steps = EvaluationSteps()


def _base_of(keepers: Keepers, checkpoint_id: str) -> str:
    with keepers.sessions.read() as session:
        row = session.get(Checkpoint, checkpoint_id)
        base = row.base_checkpoint_id if row is not None else None
    if base is None:
        raise InputChanged(f"{checkpoint_id} is an adapter, and its base is gone; register both again.")
    return base


def _check_once(names: list[str]) -> None:
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        message = (
            f"each task may be there once, with one split; found more of {', '.join(double)}. Submit one job per split"
        )
        raise Invalid(f"/tasks: {message}.", errors=[FieldProblem("/tasks", message)])
