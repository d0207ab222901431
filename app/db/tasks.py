"""Rows of tasks: found by name or id, and read back as values."""

from collections.abc import Sequence

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from app.db.owners import Owner
from app.db.tables import Task
from app.domain.errors import FieldProblem, NotFound, UnknownTask, near_match
from app.domain.identifiers import new_id
from app.domain.tasks import TaskSpec
from app.domain.views.tasks import TaskView

DIGEST_PREFIX = "sha256:"


def add(session: Session, owner: Owner, spec: TaskSpec, head_base_checkpoint_id: str | None) -> Task:
    """Add a task; the name must be free."""
    row = Task(
        id=new_id("task"),
        project_id=owner.project_id,
        actor=owner.name,
        name=spec.name,
        kind=spec.kind,
        digest=spec.digest,
        spec=spec.model_dump(mode="json"),
        head_base_checkpoint_id=head_base_checkpoint_id,
    )
    session.add(row)
    session.flush()
    return row


def find(session: Session, project_id: str, reference: str) -> Task:
    """Return the task that a path names. Raises: NotFound."""
    row = _find(session, project_id, reference)
    if row is None:
        raise NotFound(_unknown(session, project_id, "", reference).message)
    return row


def resolve(session: Session, project_id: str, references: Sequence[tuple[str, str]]) -> list[Task]:
    """Return the tasks that a body names, in order; references are (JSON pointer, name, id or `sha256:` digest).

    Raises: UnknownTask naming every unknown one.
    """
    found = [_find(session, project_id, reference) for _, reference in references]
    unknown = [pair for pair, row in zip(references, found, strict=True) if row is None]
    if unknown:
        problems = [_unknown(session, project_id, pointer, reference) for pointer, reference in unknown]
        raise UnknownTask(" ".join(problem.message for problem in problems), errors=problems)
    return [row for row in found if row is not None]


def by_name(session: Session, project_id: str, name: str) -> Task | None:
    """Return the task of a name, or None."""
    return session.scalar(select(Task).where(Task.project_id == project_id, Task.name == name))


def names(session: Session, task_ids: Sequence[str]) -> dict[str, str]:
    """Return the names of tasks by id; deleted ones are not there."""
    statement = select(Task.id, Task.name).where(Task.id.in_(set(task_ids)))
    return {row.id: row.name for row in session.execute(statement)}


def spec(row: Task) -> TaskSpec:
    """Return the task as a value."""
    return TaskSpec.model_validate(row.spec)


def view(row: Task) -> TaskView:
    """Return what a caller sees of a task."""
    value = spec(row)
    return TaskView(
        id=row.id,
        name=value.name,
        kind=value.kind,
        dataset=value.dataset,
        columns=value.columns,
        classes=list(value.classes),
        head=value.head,
        head_weights=value.head_weights,
        head_base_model=row.head_base_checkpoint_id,
        preprocessing=value.preprocessing,
        metric=value.metric,
        digest=row.digest,
        format_version=row.format_version,
        actor=row.actor,
        created_at=row.created_at,
    )


def _find(session: Session, project_id: str, reference: str) -> Task | None:
    digest = reference.removeprefix(DIGEST_PREFIX) if reference.startswith(DIGEST_PREFIX) else None
    named = Task.digest == digest if digest else or_(Task.id == reference, Task.name == reference)
    return session.scalar(select(Task).where(Task.project_id == project_id, named).order_by(Task.created_at).limit(1))


def _unknown(session: Session, project_id: str, pointer: str, reference: str) -> FieldProblem:
    known = session.scalars(select(Task.name).where(Task.project_id == project_id).order_by(Task.name).limit(1000))
    near = near_match(reference, known)
    hint = f"Did you mean {near!r}?" if near else "GET /v1/tasks lists what there is."
    return FieldProblem(pointer, f"No task is named {reference!r}. {hint}", near)
