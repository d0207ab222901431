"""Merges: what one would cost, the job it becomes, and what the job leaves behind."""

from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.db import artifacts, equal_merges
from app.db import checkpoints as checkpoint_rows
from app.db import jobs as job_rows
from app.db import parts as part_rows
from app.db.engine import Sessions
from app.db.tables import Checkpoint
from app.domain.errors import AmalgamError, ArtifactGone, IncompatibleCheckpoints, Invalid, NotFound, OutOfDisk
from app.domain.identifiers import new_id
from app.domain.jobs import JobKind, JobState, ResourceClass
from app.domain.mergekit.writing import write_merge
from app.domain.parts import count_free, count_parts, is_large, share_out
from app.domain.plans import MergePlan
from app.domain.recipes import Recipe
from app.domain.requests import MergeRequest, TaskAdditionRequest, request_of
from app.domain.views.jobs import JobView
from app.domain.views.plans import PinnedView, PlanView
from app.domain.work import CheckpointOutcome, JoinWork, MergeWork, Outcome
from app.services import jobs, measuring, merge_additions, merge_data, merge_jobs, merge_plans, parts
from app.services import merge_drafts as drafts
from app.services.actors import Actor
from app.services.idempotency import IdempotentRequest, replay, store_answer
from app.services.measuring import JobTerms
from app.services.merge_drafts import Draft, MergeSpec
from app.services.merge_jobs import Made
from app.services.running import Claim, HandedOver, JobResult, Keepers
from app.services.wiring import Wiring

# --- accepting ----------------------------------------------------------------------------------------------------


def submit(
    wiring: Wiring, actor: Actor, request: MergeRequest, idempotency: IdempotentRequest | None = None
) -> JobView:
    """Accept a merge: a queued job; or one that has succeeded at once, or waits, where an equal recipe has run or runs.

    Raises: UnknownMethod, InvalidParameters, Invalid, UnknownCheckpoint, CheckpointNotReady, UnknownTask,
        UnknownBaseModel, IncompatibleCheckpoints, OutOfDisk; Replayed, IdempotencyKeyReused.
    """
    request = merge_data.expand(wiring.catalog, request)
    ahead = _plan_ahead(wiring, actor, request)
    with wiring.sessions.begin() as session:
        replay(session, actor, idempotency)
        if ahead is not None and drafts.still_holds(session, actor, request, ahead[0]):
            made, plan = ahead
        else:
            made = drafts.draft(session, wiring, actor, request)
            plan = merge_plans.make_plan(wiring, made)
        source = None if request.force else equal_merges.find(session, actor.project_id, made.recipe.digest)
        if source is None or source.state != JobState.SUCCEEDED:
            merge_plans.check_disk(wiring, plan)
        spec = drafts.specify(request, made, n_parts=_count_parts(session, request, made, plan))
        terms = measuring.terms(wiring.defaults, request)
        job, followers = _add_job(session, actor, made, spec, terms, source)
        store_answer(session, actor, idempotency, job, f"/v1/jobs/{job.id}")
    jobs.hint(wiring.queue, [job, *followers])
    return job


def add_tasks(
    wiring: Wiring,
    actor: Actor,
    artifact_id: str,
    request: TaskAdditionRequest,
    idempotency: IdempotentRequest | None = None,
) -> JobView:
    """Accept a merge that adds models to what another one made, without the models that one was made of.

    Raises: NotFound, ArtifactGone, Invalid for an artifact that tasks cannot be added to; else as `submit`.
    """
    with wiring.sessions.read() as session:
        asked = merge_additions.make_request(session, wiring.catalog, actor, artifact_id, request)
    return submit(wiring, actor, asked, idempotency)


def plan(wiring: Wiring, actor: Actor, request: MergeRequest) -> PlanView:
    """Say what a merge would do; nothing is stored. Tensors that differ and a full disk are problems in the answer.

    Raises: as `submit` for what the request itself gets wrong.
    """
    request = merge_data.expand(wiring.catalog, request)
    with wiring.sessions.read() as session:
        made = drafts.draft(session, wiring, actor, request)
        source = None if request.force else equal_merges.find(session, actor.project_id, made.recipe.digest)
    common: dict[str, Any] = {
        "method": made.card.name,
        "method_version": made.card.version,
        "parameters": made.recipe.parameters,
        "base_model": _pinned_view(request.base_model or "", made.base) if made.base is not None else None,
        "models": [_pinned_view(model.checkpoint, row) for model, row in zip(request.models, made.models, strict=True)],
        "recipe_digest": made.recipe.digest,
        "deduplicated_from": source.id if source is not None else None,
        "free_disk_bytes": wiring.storage.free_bytes(),
    }
    try:
        planned = merge_plans.make_plan(wiring, made)
        with wiring.sessions.read() as session:
            n_parts = _count_parts(session, request, made, planned)
    except (IncompatibleCheckpoints, Invalid) as error:
        return PlanView(**common, is_runnable=False, problems=[error.to_json()], warnings=[])
    problems: list[AmalgamError] = []
    try:
        merge_plans.check_disk(wiring, planned)
    except OutOfDisk as error:
        problems.append(error)
    return PlanView(
        **common,
        is_runnable=not problems,
        problems=[problem.to_json() for problem in problems],
        warnings=list(planned.warnings),
        n_tensors=len(planned.tensors),
        n_merged_tensors=planned.n_merged,
        n_copied_tensors=planned.n_copied,
        n_passes=planned.n_passes,
        bytes_read=planned.bytes_read,
        bytes_written=planned.bytes_written,
        peak_memory_bytes=planned.peak_memory_bytes,
        disk_bytes=planned.disk_bytes,
        estimated_seconds=planned.estimated_seconds,
        n_parts=n_parts,
    )


def export_recipe(sessions: Sessions, actor: Actor, job_id: str) -> MergeRequest:
    """Return a merge's recipe as a request that gives the same bytes wherever the same contents are registered.

    Raises: NotFound for an unknown job, and for one that has merged nothing.
    """
    return MergeRequest.model_validate(request_of(_recipe_of(sessions, actor, job_id)))


def export_for_mergekit(sessions: Sessions, actor: Actor, job_id: str) -> str:
    """Return a merge's recipe as mergekit writes it; read again it is the same recipe.

    Raises: NotFound as `export_recipe`; NotAcceptable for a recipe that mergekit cannot say.
    """
    return write_merge(_recipe_of(sessions, actor, job_id))


def _recipe_of(sessions: Sessions, actor: Actor, job_id: str) -> Recipe:
    with sessions.read() as session:
        job = job_rows.view(session, job_rows.find(session, actor.project_id, job_id))
        if job.kind is JobKind.SWEEP and job.result is not None:
            return Recipe.model_validate(artifacts.recipe_of(session, job.id))
    if job.kind is not JobKind.MERGE:
        raise NotFound(f"Job {job_id} is of kind {job.kind}; only merges have a recipe, and sweeps that succeeded.")
    return MergeSpec.model_validate(job.spec).recipe


def _plan_ahead(wiring: Wiring, actor: Actor, request: MergeRequest) -> tuple[Draft, MergePlan] | None:
    """Return draft and plan, made before the writing transaction: seconds for very many tensors, in which others write.

    None where something is wrong: it is said in the transaction, where a replay goes before it.
    """
    try:
        with wiring.sessions.read() as session:
            made = drafts.draft(session, wiring, actor, request)
        return made, merge_plans.make_plan(wiring, made)
    except AmalgamError:
        return None


def _count_parts(session: Session, request: MergeRequest, made: Draft, plan: MergePlan) -> int:
    n_free = 0
    if request.parallelism == "auto" and is_large(plan):
        rooms = part_rows.list_rooms(session, ResourceClass.CPU)
        n_free = count_free(rooms, n_waiting=part_rows.count_waiting(session, ResourceClass.CPU))
    return count_parts(request.parallelism, made.recipe, made.card, plan, n_free=n_free)


def _pinned_view(ref: str, row: Checkpoint) -> PinnedView:
    return PinnedView(
        ref=ref,
        checkpoint=row.id,
        name=row.name,
        version=row.version,
        content_digest=str(row.content_digest),
        weights_digest=str(row.weights_digest),
    )


def _add_job(  # noqa: PLR0913 (all that was found out about one job)
    session: Session, actor: Actor, made: Draft, spec: MergeSpec, terms: JobTerms, source: JobView | None
) -> tuple[JobView, tuple[JobView, ...]]:
    """Add the job: to be run, to wait for an equal one that runs, or with the result of one that has run."""
    common: dict[str, Any] = {
        "kind": JobKind.MERGE,
        "spec": spec.model_dump(mode="json"),
        "inputs": made.inputs,
        "recipe_digest": made.recipe.digest,
        "tags": spec.tags,
        "resource_class": ResourceClass.GPU if spec.learning else None,  # it runs models
        **terms.model_dump(),
    }
    if source is None:
        return jobs.add(session, actor, **common), ()
    if source.state is not JobState.SUCCEEDED:
        return jobs.add(session, actor, **common, waits_for=source.id), ()
    try:
        checkpoint_id, files = equal_merges.made_by(session, source.id)
    except ArtifactGone:  # deleted a moment ago
        return jobs.add(session, actor, **common), ()
    manifest = checkpoint_rows.load_manifest(session, checkpoint_id)
    kept = merge_jobs.keep(session, actor, Made(new_id("job"), spec, manifest, files))
    common |= {"job_id": kept.job_id, "result": kept.result(source), "deduplicated_from": source.id}
    job = jobs.add(session, actor, **common)
    evaluations = merge_jobs.add_evaluations(session, actor, kept, terms)
    return job.model_copy(update={"children": tuple(child.id for child in evaluations)}), evaluations


# --- the job ------------------------------------------------------------------------------------------------------


class MergeSteps:
    """What a merge job does around its work."""

    def prepare(self, keepers: Keepers, claim: Claim, scratch: Path) -> MergeWork | JoinWork | HandedOver:
        """Bring the inputs here; of a merge in parts, add the parts, or what they have merged when they are done."""
        spec = MergeSpec.model_validate(claim.job.spec)
        if spec.n_parts == 1:
            return merge_jobs.fetch(keepers, spec, scratch / "output")
        merged = parts.find_merged(keepers.sessions, claim.job.id)
        if not merged:
            plan = merge_plans.plan_spec(keepers.sessions, spec)
            shares = share_out(plan, spec.n_parts)
            is_dealt_out = plan.n_rounds > 0 and not merge_jobs.is_remote(keepers, spec)
            n_tallying = parts.count_tallying_places(keepers.sessions) if is_dealt_out else len(shares)
            first = parts.first_round(shares, n_rounds=plan.n_rounds, n_tallying=n_tallying)
            return parts.hand_over(keepers.sessions, claim, first, total_bytes=plan.bytes_read)
        folder = keepers.storage.fetch(merged, watch=keepers.watch)
        work = merge_jobs.fetch(keepers, spec, scratch / "output", is_wanted=merge_jobs.is_companion)
        return JoinWork(merge=work, merged=tuple(folder / file.path for file in merged))

    def record(self, session: Session, claim: Claim, outcome: Outcome) -> JobResult:
        """Keep the artifact, the named checkpoint, and the evaluations to come."""
        if not isinstance(outcome, CheckpointOutcome):
            raise TypeError(f"a merge gave {type(outcome).__name__}, expected CheckpointOutcome")
        spec = MergeSpec.model_validate(claim.job.spec)
        made = Made(claim.job.id, spec, outcome.manifest, outcome.manifest.files)
        kept = merge_jobs.keep(session, claim.actor, made)
        followers = merge_jobs.add_evaluations(session, claim.actor, kept, merge_jobs.terms_of(claim.job))
        warnings = outcome.report.get("warnings")
        return JobResult(
            {**kept.document, "data": outcome.report},
            followers,
            warnings=tuple(str(message) for message in warnings) if isinstance(warnings, list) else (),
        )


steps = MergeSteps()


def complete_waiter(session: Session, waiter: JobView, source: JobView) -> JobResult:
    """Give a merge that waited for an equal one its own version of what that one made.

    Raises: ArtifactGone when it was deleted meanwhile.
    """
    spec = MergeSpec.model_validate(waiter.spec)
    actor = Actor(waiter.project_id, waiter.actor, waiter.request_id, waiter.traceparent)
    checkpoint_id, files = equal_merges.made_by(session, source.id)
    made = Made(waiter.id, spec, checkpoint_rows.load_manifest(session, checkpoint_id), files)
    kept = merge_jobs.keep(session, actor, made)
    return JobResult(kept.result(source), merge_jobs.add_evaluations(session, actor, kept, merge_jobs.terms_of(waiter)))
