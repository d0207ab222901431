"""Sweeps: a merge at many points of its parameters; the one that measures best on validation becomes a checkpoint."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, JsonValue, ValidationError
from sqlalchemy.orm import Session

from app.db import artifacts, bases, metrics
from app.db import checkpoints as checkpoint_rows
from app.db import events as event_log
from app.db import tasks as task_rows
from app.domain.catalog import Catalog
from app.domain.checkpoints import Value
from app.domain.errors import AmalgamError, FieldProblem, Invalid, InvalidParameters, near_match
from app.domain.jobs import JobKind
from app.domain.requests import EvaluationItem, MergeRequest
from app.domain.sweep_requests import SweepRequest, full_path
from app.domain.sweeps import (
    POINT_EVENT,
    Grid,
    MeasuredPoint,
    Selection,
    Space,
    Values,
    make_grid,
    make_search,
    put,
    recipe_at,
)
from app.domain.tasks import TaskSpec
from app.domain.views.jobs import JobInputRef, JobView
from app.domain.work import Outcome, SweepOutcome, SweepWork
from app.services import inputs, jobs, measuring, merge_data, merge_jobs, merge_plans, task_files
from app.services import merge_drafts as drafts
from app.services.actors import Actor
from app.services.idempotency import IdempotentRequest, replay, store_answer
from app.services.measuring import PinnedItem
from app.services.merge_drafts import Draft, MergeSpec
from app.services.merge_jobs import Made
from app.services.running import Claim, JobResult, Keepers
from app.services.wiring import Wiring


class SweepSpec(Value):
    """A sweep's spec: the merge at its first point, refs pinned; the points; what they are compared by."""

    method: str
    merge: MergeSpec
    space: Space
    selection: Selection
    tasks: Annotated[tuple[PinnedItem, ...], Field(min_length=1)]


@dataclass(frozen=True)
class _Draft:
    """A request with everything it names found, pinned and checked."""

    merge: Draft
    tasks: tuple[PinnedItem, ...]
    metric: str  # of all tasks

    @property
    def inputs(self) -> list[JobInputRef]:
        """The checkpoints that the job reads."""
        refs = [ref for ref in self.merge.inputs if ref.role != "head"]
        return [*refs, *measuring.head_inputs([*self.merge.evaluate, *self.merge.learning, *self.tasks])]


def submit(
    wiring: Wiring, actor: Actor, request: SweepRequest, idempotency: IdempotentRequest | None = None
) -> JobView:
    """Accept a sweep; every point of a grid, and the corners of a search, are checked first.

    Raises: as merges.submit; InvalidParameters naming the point; Invalid for a metric that a task has not.
    """
    _refuse_parts(request.merge)
    request = request.model_copy(update={"merge": merge_data.expand(wiring.catalog, request.merge)})
    space: Space = make_search(request.search) if request.search is not None else make_grid(request.grid or {})
    first = next(space.points() if isinstance(space, Grid) else space.corners())
    at_first = _at_point(request.merge, first, space)
    ahead = _draft_ahead(wiring, actor, request, at_first, space)
    with wiring.sessions.begin() as session:
        replay(session, actor, idempotency)
        is_same = ahead is not None and drafts.still_holds(session, actor, at_first, ahead.merge)
        made = ahead if ahead is not None and is_same else _draft(session, wiring, actor, request, at_first, space)
        spec = SweepSpec(
            method=made.merge.card.name,
            merge=drafts.specify(at_first, made.merge),
            space=space,
            selection=Selection(split=request.select_on.split, metric=made.metric),
            tasks=made.tasks,
        )
        job = jobs.add(
            session,
            actor,
            kind=JobKind.SWEEP,
            spec=spec.model_dump(mode="json"),
            inputs=made.inputs,
            tags=spec.merge.tags,
            **measuring.terms(wiring.defaults, request).model_dump(),
        )
        warning = merge_data.warn_same_examples(session, made.merge.learning, made.tasks)
        if warning is not None:
            event_log.append(session, job.id, "job.warning", {"message": warning})
        store_answer(session, actor, idempotency, job, f"/v1/jobs/{job.id}")
    jobs.hint(wiring.queue, [job])
    return job


def _refuse_parts(request: MergeRequest) -> None:
    asked = request.parallelism
    if asked != "auto" and asked > 1:
        message = f'found {asked}, expected 1 or "auto": the points of a sweep are merged by one job; leave it out'
        raise Invalid(f"/merge/parallelism: {message}.", errors=[FieldProblem("/merge/parallelism", message)])


class SweepSteps:
    """What a sweep does around its work."""

    def prepare(self, keepers: Keepers, claim: Claim, scratch: Path) -> SweepWork:
        """Bring the inputs and the tasks' files here, and remember what an earlier attempt has measured."""
        spec = SweepSpec.model_validate(claim.job.spec)
        merge = merge_jobs.fetch(keepers, spec.merge, scratch / "output")
        bases = {item.base_model for item in spec.tasks if item.base_model is not None}
        here = {checkpoint_id: inputs.local(keepers, checkpoint_id) for checkpoint_id in sorted(bases)}
        reference = merge.base_model or merge.models[0]
        with keepers.sessions.read() as session:
            lines = event_log.of_kind(session, claim.job.id, POINT_EVENT)
        return SweepWork(
            merge=merge,
            space=spec.space,
            selection=spec.selection,
            tasks=tuple(task_files.fetch(keepers, item.task_id, [item.split]) for item in spec.tasks),
            base_models={
                item.task_id: here[item.base_model] if item.base_model is not None else reference for item in spec.tasks
            },
            labels={item.task_id: item.patch for item in spec.tasks if item.patch is not None},
            measured=tuple(MeasuredPoint.model_validate(line) for line in lines),
            scratch=scratch / "sweep",
        )

    def record(self, session: Session, claim: Claim, outcome: Outcome) -> JobResult:
        """Keep the best merge as a merge is kept, the curve as a report, and what was measured of the best."""
        if not isinstance(outcome, SweepOutcome):
            raise TypeError(f"a sweep gave {type(outcome).__name__}, expected SweepOutcome")
        spec = SweepSpec.model_validate(claim.job.spec)
        merged = spec.merge.model_copy(update={"recipe": outcome.recipe, "parameters": outcome.recipe.parameters})
        made = Made(claim.job.id, merged, outcome.manifest, outcome.manifest.files)
        kept = merge_jobs.keep(session, claim.actor, made)
        report = artifacts.add(
            session, claim.actor, kind="report", job_id=claim.job.id, checkpoint_id=None, files=outcome.curve_files
        )
        found = metrics.add(
            session,
            claim.actor.project_id,
            job_id=claim.job.id,
            checkpoint_id=kept.checkpoint_id,
            measurements=outcome.best.measurements,
        )
        followers = merge_jobs.add_evaluations(session, claim.actor, kept, merge_jobs.terms_of(claim.job))
        measured: list[JsonValue] = [metric.model_dump(mode="json") for metric in found]
        warnings = outcome.report.get("warnings")
        return JobResult(
            {
                **kept.document,
                "artifacts": [kept.artifact_id, report.id],
                "metrics": measured,
                "data": {**outcome.curve, "merge": outcome.report},
            },
            followers,
            warnings=tuple(str(message) for message in warnings) if isinstance(warnings, list) else (),
        )


steps = SweepSteps()


# --- drafting -----------------------------------------------------------------------------------------------------


def _draft_ahead(
    wiring: Wiring, actor: Actor, request: SweepRequest, at_first: MergeRequest, space: Space
) -> _Draft | None:
    """Return the draft, made before the writing transaction; None where something is wrong: it is said in there."""
    try:
        with wiring.sessions.read() as session:
            return _draft(session, wiring, actor, request, at_first, space)
    except AmalgamError:
        return None


def _draft(  # noqa: PLR0913 (a request in its parts)
    session: Session, wiring: Wiring, actor: Actor, request: SweepRequest, at_first: MergeRequest, space: Space
) -> _Draft:
    with _of_the_sweep(space):
        made = drafts.draft(session, wiring, actor, at_first)
    if made.card.copies:
        message = f"{made.card.name} only copies tensors; it has no parameters to sweep"
        raise Invalid(f"/merge/method: {message}.", errors=[FieldProblem("/merge/method", message)])
    _check_points(session, wiring.catalog, made, space)
    with _of_the_sweep(space):
        merge_plans.check_disk(wiring, merge_plans.make_plan(wiring, made))
    return _Draft(made, *_pin_tasks(session, actor, request, made))


def _at_point(merge: MergeRequest, values: Values, space: Space) -> MergeRequest:
    """Return the merge with a point's values. Raises: InvalidParameters."""
    document = merge.model_dump(mode="json")
    with _of_the_sweep(space):
        put(document, values)
        try:
            return MergeRequest.model_validate(document)
        except ValidationError as error:
            faults = [FieldProblem("/" + "/".join(map(str, one["loc"])), one["msg"]) for one in error.errors()]
            raise InvalidParameters(f"{faults[0].pointer}: {faults[0].message}.", errors=faults) from None


def _check_points(session: Session, catalog: Catalog, made: Draft, space: Space) -> None:
    points = space.points() if isinstance(space, Grid) else space.corners()
    for index, values in enumerate(points):
        what = f"point {index}" if isinstance(space, Grid) else "a corner of the search"
        with _of_the_sweep(space, values, what=what):
            recipe = recipe_at(catalog, made.recipe, values)
            merge_data.check_point(session, made.learner, recipe.parameters, made.learning)


def _pin_tasks(
    session: Session, actor: Actor, request: SweepRequest, made: Draft
) -> tuple[tuple[PinnedItem, ...], str]:
    """Return the tasks to choose by, and the metric."""
    chosen = request.select_on
    pointer = "/merge/evaluate" if chosen.tasks is None else "/select_on/tasks"
    names = [item if isinstance(item, str) else item.task for item in request.merge.evaluate]
    wanted = chosen.tasks if chosen.tasks is not None else list(dict.fromkeys(names))
    items = [EvaluationItem(task=name, split=chosen.split) for name in wanted]
    rows = measuring.pin_items(session, actor.project_id, items, pointer=pointer)
    metric = _choose_metric([task_rows.spec(row) for row, _ in rows], chosen.metric)
    family = [made.base] if made.base is not None else list(made.models)
    shared = bases.shared_root(session, [row.id for row in family])
    pinned = measuring.pin_bases(session, rows, default=shared, pointer=pointer)
    labels = _patch_labels(session, made)
    if labels:
        pinned = measuring.pin_patches(pinned, labels, what="the merge", pointer=pointer)
    return pinned, metric


def _patch_labels(session: Session, made: Draft) -> list[str]:
    """Return the labels of the result's patches; none of a dense result."""
    there = checkpoint_rows.load_manifest(session, made.onto.id).patches if made.onto is not None else ()
    return [*(patch.task for patch in there), *(model.task for model in made.recipe.models if model.task is not None)]


def _choose_metric(tasks: Sequence[TaskSpec], asked: str | None) -> str:
    """Return the metric that all tasks are measured by, which is the one asked for if any is."""
    wanted = asked or tasks[0].metric
    if all(task.metric == wanted for task in tasks):
        return wanted
    own = sorted({task.metric for task in tasks})
    measured = ", ".join(f"{task.name} by {task.metric}" for task in tasks)
    expected = f"expected {own[0]}" if len(own) == 1 else "name tasks of one metric in select_on.tasks"
    message = f"points are compared by one metric of all tasks, found {measured}; {expected}"
    fault = FieldProblem("/select_on/metric", message, near_match(wanted, own) if asked else None)
    raise Invalid(f"/select_on/metric: {message}.", errors=[fault])


@contextmanager
def _of_the_sweep(space: Space, values: Values | None = None, *, what: str = "the first point") -> Iterator[None]:
    """Turn faults of a merge into faults of the sweep around it: other pointers, and which point it is."""
    try:
        yield
    except AmalgamError as error:
        found = [_relocate(fault, space, values, what) for fault in error.errors]
        place = f"{what} ({_text(values)}): " if values is not None else "merge: "
        raise type(error)(f"{place}{error.detail}", errors=found) from None


def _relocate(fault: FieldProblem, space: Space, values: Values | None, what: str) -> FieldProblem:
    for path in space.paths:
        place = f"/{full_path(path).replace('.', '/')}"
        if fault.pointer == place or fault.pointer.startswith(f"{place}/"):
            root = "/grid" if isinstance(space, Grid) else "/search/parameters"
            message = fault.message if values is None else f"{what} ({_text(values)}): {fault.message}"
            return FieldProblem(f"{root}/{path}", message, fault.did_you_mean)
    return FieldProblem(f"/merge{fault.pointer}", fault.message, fault.did_you_mean)


def _text(values: Values) -> str:
    return ", ".join(f"{path} = {value!r}" for path, value in values.items())
