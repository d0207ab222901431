"""Analyses: looking at models without changing them. The result is a report artifact and its data."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, JsonValue
from sqlalchemy.orm import Session

from app.db import artifacts
from app.db import checkpoints as checkpoint_rows
from app.db.tables import Task
from app.domain.analyses import check_analysis, check_merges
from app.domain.catalog import AnalysisCard, Catalog
from app.domain.checkpoints import CheckpointKind, LocalCheckpoint, Manifest, Value, check_mergeable
from app.domain.errors import FieldProblem, IncompatibleCheckpoints, Invalid
from app.domain.jobs import JobKind, ResourceClass
from app.domain.merge_sets import view_adapters
from app.domain.requests import AnalysisRequest
from app.domain.tasks import LocalTask
from app.domain.views.jobs import JobInputRef, JobView
from app.domain.work import AnalyzeOutcome, AnalyzeWork, EvaluateWork, Outcome, PatchedTasks
from app.services import inputs, jobs, measuring, task_files
from app.services.actors import Actor
from app.services.idempotency import IdempotentRequest, replay, store_answer
from app.services.measuring import PinnedItem
from app.services.running import Claim, JobResult, Keepers
from app.services.wiring import Wiring

TUNED_ON = "validation"


class AnalysisSpec(Value):
    """An analysis job's spec: the request with its refs pinned."""

    kind: str
    base_model: str
    models: tuple[str, ...]
    labels: tuple[str, ...]  # the models' names, for people
    parameters: dict[str, JsonValue] = Field(default_factory=dict)  # effective
    tasks: tuple[PinnedItem, ...] = ()
    merged: str | None = None  # the merge to look at; None: one that is made
    merged_base: str | None = None  # what it lies on, if it is an adapter


def submit(
    wiring: Wiring, actor: Actor, request: AnalysisRequest, idempotency: IdempotentRequest | None = None
) -> JobView:
    """Accept an analysis.

    Raises: UnknownAnalysis, Invalid, InvalidParameters, UnknownMethod; UnknownCheckpoint, CheckpointNotReady,
        IncompatibleCheckpoints; UnknownTask; Replayed, IdempotencyKeyReused.
    """
    with wiring.sessions.begin() as session:
        replay(session, actor, idempotency)
        card, parameters = check_analysis(
            wiring.catalog,
            request.kind,
            request.parameters,
            n_models=len(request.models),
            n_tasks=len(request.tasks),
            has_merged=request.merged is not None,
        )
        refs = [(f"/models/{index}", ref) for index, ref in enumerate(request.models)]
        named = [("/base_model", request.base_model), *refs]
        named += [] if request.merged is None else [("/merged", request.merged)]
        base, *others = checkpoint_rows.resolve(session, actor.project_id, named)
        models, merged = others[: len(refs)], next(iter(others[len(refs) :]), None)
        manifests = checkpoint_rows.load_manifests(session, list({row.id for row in (base, *models)}))
        of_models = [manifests[row.id] for row in models]
        _check_comparable(manifests[base.id], of_models)
        check_merges(wiring.catalog, card, parameters, base=manifests[base.id], models=of_models)
        tasks = _pin_tasks(session, actor, wiring.catalog, request, base.id)
        if merged is not None:
            measuring.check_runnable(merged, str(request.merged), pointer="/merged")
            tasks = measuring.pin_patches_of(session, merged, tasks, pointer="/tasks")
        spec = AnalysisSpec(
            kind=request.kind,
            base_model=base.id,
            models=tuple(row.id for row in models),
            labels=tuple(f"{row.name}@{row.version}" for row in models),
            parameters=parameters,
            tasks=tasks,
            merged=None if merged is None else merged.id,
            merged_base=merged.base_checkpoint_id
            if merged is not None and merged.kind == CheckpointKind.ADAPTER
            else None,
        )
        job = jobs.add(
            session,
            actor,
            kind=JobKind.ANALYZE,
            spec=spec.model_dump(mode="json"),
            inputs=[
                JobInputRef(role="base_model", position=0, checkpoint_id=base.id),
                *(JobInputRef(role="model", position=index, checkpoint_id=row.id) for index, row in enumerate(others)),
                *measuring.head_inputs(tasks),
            ],
            resource_class=ResourceClass.GPU if tasks else None,
            **measuring.terms(wiring.defaults, request).model_dump(),
        )
        store_answer(session, actor, idempotency, job, f"/v1/jobs/{job.id}")
    jobs.hint(wiring.queue, [job])
    return job


class AnalysisSteps:
    """What an analysis job does around its work."""

    def prepare(self, keepers: Keepers, claim: Claim, scratch: Path) -> AnalyzeWork:
        """Bring the models here."""
        spec = AnalysisSpec.model_validate(claim.job.spec)
        heads = {item.task_id: item.base_model or spec.base_model for item in spec.tasks}
        here = {
            checkpoint_id: inputs.local(keepers, checkpoint_id)
            for checkpoint_id in dict.fromkeys(
                [spec.base_model, *spec.models, *heads.values(), *filter(None, (spec.merged, spec.merged_base))]
            )
        }
        tasks = tuple(task_files.fetch(keepers, item.task_id, [item.split, TUNED_ON]) for item in spec.tasks)
        head_bases = {task_id: here[base] for task_id, base in heads.items()}
        return AnalyzeWork(
            analysis=spec.kind,
            base_model=here[spec.base_model],
            models=tuple(here[checkpoint_id] for checkpoint_id in spec.models),
            labels=spec.labels,
            parameters=spec.parameters,
            tasks=tasks,
            head_bases=head_bases,
            split=spec.tasks[0].split if spec.tasks else "test",
            merged=_look_at(spec, here, tasks, head_bases, scratch / "merged"),
            output=scratch / "output",
            scratch=scratch / "bench",
        )

    def record(self, session: Session, claim: Claim, outcome: Outcome) -> JobResult:
        """Keep the report."""
        if not isinstance(outcome, AnalyzeOutcome):
            raise TypeError(f"an analysis gave {type(outcome).__name__}, expected AnalyzeOutcome")
        report = artifacts.add(
            session, claim.actor, kind="report", job_id=claim.job.id, checkpoint_id=None, files=outcome.files
        )
        return JobResult(
            {"checkpoint": None, "artifacts": [report.id], "evaluations": [], "metrics": [], "data": outcome.data}
        )


steps = AnalysisSteps()


def _look_at(
    spec: AnalysisSpec,
    here: Mapping[str, LocalCheckpoint],
    tasks: tuple[LocalTask, ...],
    head_bases: dict[str, LocalCheckpoint],
    scratch: Path,
) -> EvaluateWork | None:
    """Return the merge that is named, as an evaluation takes it."""
    if spec.merged is None:
        return None
    labels = {item.task_id: item.patch for item in spec.tasks if item.patch is not None}
    return EvaluateWork(
        checkpoint=here[spec.merged],
        tasks=tasks,
        base_models=head_bases,
        split={item.task_id: item.split for item in spec.tasks},
        patched=PatchedTasks(labels=labels, scratch=scratch / "tasks") if labels else None,
        adapter_base=here[spec.merged_base] if spec.merged_base is not None else None,
        scratch=scratch / "fused",
    )


def _pin_tasks(
    session: Session, actor: Actor, catalog: Catalog, request: AnalysisRequest, base: str
) -> tuple[PinnedItem, ...]:
    """Return the tasks of a checked request; each has the split that is tuned on, where the kind tunes anything."""
    card = catalog.analysis(request.kind)
    splits = dict.fromkeys([*([TUNED_ON] if card.tunes else []), request.split])
    for split in splits:
        found = measuring.pin_items(session, actor.project_id, request.tasks, pointer="/tasks", split=split)
    if card.observes:
        _check_observable(catalog, card, [row for row, _ in found])
    return measuring.pin_bases(session, found, default=base, pointer="/tasks")


def _check_observable(catalog: Catalog, card: AnalysisCard, tasks: Sequence[Task]) -> None:
    faults = [
        FieldProblem(
            f"/tasks/{index}",
            f"task {row.name!r} is of kind {row.kind!r}, whose models give no logits of classes",
        )
        for index, row in enumerate(tasks)
        if not catalog.evaluator(row.kind).has_class_logits
    ]
    if faults:
        known = ", ".join(one.name for one in catalog.evaluators if one.has_class_logits)
        raise Invalid(f"{card.name}: {faults[0].message}; expected tasks of a kind among {known}.", errors=faults)


def _check_comparable(base: Manifest, models: list[Manifest]) -> None:
    found = check_mergeable(base, view_adapters(base, models))
    if found.is_mergeable:
        return
    faults = [
        FieldProblem(
            f"/models/{difference.model}",
            f"tensor {difference.name!r}: {difference.problem}"
            + (f", expected {difference.expected}, found {difference.found}" if difference.expected else ""),
        )
        for difference in found.differences
        if difference.problem != "dtype"
    ]
    raise IncompatibleCheckpoints(
        f"The models do not have the base model's tensors: {faults[0].message} ({len(faults)} differences)."
        " Name models that were fine-tuned from this base.",
        errors=faults[:50],
    )
