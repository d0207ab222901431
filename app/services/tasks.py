"""Tasks: made once, immutable, unique by name; the same content again is the one that is there."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db import checkpoints as checkpoint_rows
from app.db import tasks as rows
from app.db.engine import Sessions
from app.db.locks import lock
from app.db.paging import made_between, paginate
from app.db.tables import Job, Task
from app.domain.errors import FieldProblem, Invalid, NameTaken, ResourceInUse
from app.domain.jobs import LIVE_STATES
from app.domain.requests import LabelPromptsRequest, LinearHeadRequest, PrototypesRequest, Split, TaskRequest
from app.domain.tasks import DataFile, Head, LabelPromptsHead, LinearHead, OwnHead, PrototypesHead, TaskSpec
from app.domain.views.pages import Page, PageRequest
from app.domain.views.tasks import TaskView
from app.services import task_files
from app.services.actors import Actor
from app.services.idempotency import IdempotentRequest, replay, store_answer
from app.services.wiring import Wiring


@dataclass(frozen=True)
class TaskFilters:
    """What narrows a list of tasks; None: anything."""

    kind: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


def create(
    wiring: Wiring, actor: Actor, request: TaskRequest, idempotency: IdempotentRequest | None = None
) -> tuple[TaskView, bool]:
    """Return the task and whether it is new; its files are hashed now and not read otherwise.

    Raises: NameTaken for other content under the name; Invalid for a test split that is another split too;
        UnknownTaskKind, InvalidParameters, UriNotAllowed, UriNotFound, UnknownCheckpoint, CheckpointNotReady; Replayed,
        IdempotencyKeyReused.
    """
    if idempotency is not None:
        with wiring.sessions.begin() as session:
            replay(session, actor, idempotency)  # before the files are looked at: they may be gone by now
    spec = _specify(wiring, request)
    with wiring.sessions.begin() as session:
        replay(session, actor, idempotency)
        base = _head_base(session, actor, request)
        lock(session, "task", actor.project_id, spec.name)
        existing = rows.by_name(session, actor.project_id, spec.name)
        if existing is not None:
            _check_same(existing, spec, base)
        row = existing or rows.add(session, actor, spec, base)
        answered = replace(idempotency, status=200) if idempotency is not None and existing is not None else idempotency
        view = rows.view(row)
        store_answer(session, actor, answered, view, f"/v1/tasks/{row.id}")
    return view, existing is None


def get(sessions: Sessions, actor: Actor, reference: str) -> TaskView:
    """Return a task by name or id. Raises: NotFound."""
    with sessions.read() as session:
        return rows.view(rows.find(session, actor.project_id, reference))


def list_(sessions: Sessions, actor: Actor, filters: TaskFilters, page: PageRequest) -> Page[TaskView]:
    """Return a page of tasks. Raises: BadCursor."""
    between = made_between(Task.created_at, filters.created_after, filters.created_before)
    statement = select(Task).where(Task.project_id == actor.project_id, *between)
    if filters.kind is not None:
        statement = statement.where(Task.kind == filters.kind)
    with sessions.read() as session:
        found, cursor = paginate(session, statement, key=Task.id, request=page, filters=vars(filters))
        return Page(items=[rows.view(row) for row in found], next_cursor=cursor)


def delete(sessions: Sessions, actor: Actor, reference: str) -> None:
    """Delete a task; what was measured on it stays. Raises: NotFound; ResourceInUse while a job needs it."""
    with sessions.begin() as session:
        row = rows.find(session, actor.project_id, reference)
        using = _live_jobs(session, row)
        if using:
            detail = (
                f"Task {row.name!r} is needed by {', '.join(using[:5])}. Wait until they have ended, or cancel them."
            )
            raise ResourceInUse(detail)
        session.delete(row)


def _specify(wiring: Wiring, request: TaskRequest) -> TaskSpec:
    card, preprocessing = wiring.catalog.check_task(
        request.kind,
        head=request.head.kind,
        metric=request.metric,
        n_classes=len(request.classes),
        preprocessing=request.preprocessing,
    )
    places = [(f"/dataset/{split}", uri) for split, uri in request.dataset.items()]
    for pointer, uri in places:
        task_files.refuse_unreadable(uri, pointer, card)
    dataset = {
        split: task_files.describe(wiring.sources, uri, pointer)
        for split, (pointer, uri) in zip(request.dataset, places, strict=True)
    }
    _refuse_seen_test(dataset)
    return TaskSpec(
        name=request.name,
        kind=request.kind,
        dataset=dict(sorted(dataset.items())),
        columns=request.columns,
        classes=tuple(request.classes),
        head=_head(request),
        head_weights=_head_weights(wiring, request),
        preprocessing=preprocessing,
        metric=request.metric or card.metrics[0],
    )


def _refuse_seen_test(dataset: Mapping[Split, DataFile]) -> None:
    """Refuse a test split that is what models learn on or are chosen by. Raises: Invalid."""
    of_content = {file.sha256: split for split, file in sorted(dataset.items()) if split != "test"}
    same = of_content.get(dataset["test"].sha256) if "test" in dataset else None
    if same is not None:
        message = (
            f"test has the same content as {same}; expected examples that nothing was learned on or chosen by, "
            "else numbers on test are too good. Name another file, or leave one of the two out"
        )
        raise Invalid(f"/dataset/test: {message}.", errors=[FieldProblem("/dataset/test", message)])


def _head(request: TaskRequest) -> Head:
    head = request.head
    if isinstance(head, LabelPromptsRequest):
        return LabelPromptsHead(kind="label_prompts", prompts=tuple(head.prompts), scale=head.scale)
    if isinstance(head, PrototypesRequest):
        return PrototypesHead(kind="prototypes", shots=head.shots, scale=head.scale)
    if isinstance(head, LinearHeadRequest):
        return LinearHead(kind="linear", weights=head.weights)
    return OwnHead(kind="own")


def _head_weights(wiring: Wiring, request: TaskRequest) -> DataFile | None:
    if not isinstance(request.head, LinearHeadRequest):
        return None
    return task_files.describe(wiring.sources, request.head.weights, "/head/weights")


def _head_base(session: Session, actor: Actor, request: TaskRequest) -> str | None:
    if not isinstance(request.head, LabelPromptsRequest | PrototypesRequest) or request.head.base_model is None:
        return None
    refs = [("/head/base_model", request.head.base_model)]
    return checkpoint_rows.resolve(session, actor.project_id, refs)[0].id


def _check_same(existing: Task, spec: TaskSpec, base: str | None) -> None:
    if existing.digest == spec.digest and existing.head_base_checkpoint_id == base:
        return
    message = f"the task {spec.name!r} ({existing.id}) has other content; a task does not change. Choose another name."
    raise NameTaken(f"{message[:1].upper()}{message[1:]}", errors=[FieldProblem("/name", message)])


def _live_jobs(session: Session, row: Task) -> list[str]:
    live = select(Job.id, Job.spec).where(
        Job.project_id == row.project_id, Job.state.in_([str(state) for state in LIVE_STATES])
    )
    return [job_id for job_id, spec in session.execute(live.order_by(Job.id)) if row.id in _named_tasks(spec)]


def _named_tasks(spec: dict[str, Any]) -> list[str]:
    items = [*(spec.get("tasks") or ()), *(spec.get("evaluate") or ()), *(spec.get("learning") or ())]
    return [*(item["task_id"] for item in items if "task_id" in item), *filter(None, [spec.get("task_id")])]
