"""What to measure: tasks by name, the base model behind each head, and the evaluation jobs that follow.

Shared by evaluations and by merges that ask for evaluations.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, JsonValue
from sqlalchemy.orm import Session

from app.db import tasks as task_rows
from app.db.tables import Task
from app.domain.checkpoints import Value
from app.domain.errors import FieldProblem, Invalid, UnknownBaseModel, near_match
from app.domain.jobs import JobKind
from app.domain.requests import EvaluationItem, WorkRequest
from app.domain.tasks import LabelPromptsHead
from app.domain.views.jobs import JobInputRef, JobView
from app.services import jobs
from app.services.actors import Actor
from app.services.wiring import Defaults


class PinnedItem(Value):
    """A task and split to measure on. `base_model`: the checkpoint behind the head, where the head needs one."""

    task: str  # name
    task_id: str
    split: str
    base_model: str | None = None
    patch: str | None = None  # of a multitask checkpoint: the label of the patch that it is measured with


class EvaluationSpec(Value):
    """What an evaluation job measures, refs pinned."""

    checkpoint: str
    tasks: Annotated[tuple[PinnedItem, ...], Field(min_length=1)]
    task: str | None = None  # the name, where there is one task: jobs are filtered by it


class JobTerms(Value):
    """How a job is run."""

    priority: int
    max_attempts: int
    timeout_seconds: int
    job_id: str | None = None
    parent_id: str | None = None


def terms(defaults: Defaults, request: WorkRequest) -> JobTerms:
    """Return how a request wants its job run, defaults filled in."""
    return JobTerms(
        priority=request.priority,
        max_attempts=request.max_attempts or defaults.max_attempts,
        timeout_seconds=request.timeout_seconds or defaults.timeout_seconds,
    )


def pin_items(
    session: Session,
    project_id: str,
    items: Sequence[str | EvaluationItem],
    *,
    pointer: str,
    split: str = "test",
) -> list[tuple[Task, str]]:
    """Return (task, split) of each item. `pointer`: of the list in the body; `split`: of items that name none.

    Raises: UnknownTask naming all; Invalid for a split that a task has not, or an item that is there twice.
    """
    asked = [EvaluationItem(task=item, split=split) if isinstance(item, str) else item for item in items]  # type: ignore[arg-type]  # a Split by its caller's schema
    places = [
        f"{pointer}/{index}" if isinstance(item, str) else f"{pointer}/{index}/task" for index, item in enumerate(items)
    ]
    rows = task_rows.resolve(session, project_id, [(at, item.task) for at, item in zip(places, asked, strict=True)])
    pinned: list[tuple[Task, str]] = [(row, item.split) for row, item in zip(rows, asked, strict=True)]
    faults = [
        fault
        for at, (row, of) in zip(places, pinned, strict=True)
        for fault in _item_faults(at, row, of, pinned.count((row, of)))
    ]
    if faults:
        raise Invalid(f"{faults[0].pointer}: {faults[0].message}", errors=faults)
    return pinned


def pin_bases(
    session: Session, items: Sequence[tuple[Task, str]], *, default: str | None, pointer: str
) -> tuple[PinnedItem, ...]:
    """Return the items with the base model behind each head. `default`: the base behind what is measured, if known.

    Raises: UnknownBaseModel where a head needs a base model and none is known.
    """
    pinned: list[PinnedItem] = []
    for row, split in items:
        base = (row.head_base_checkpoint_id or default) if needs_base(row) else None
        if needs_base(row) and base is None:
            message = (
                f"task {row.name!r} has label prompts, which need a base model, and none can be derived: the checkpoint"
                " has no base_checkpoint in common. Give base_model, or make a task whose head names its base_model."
            )
            raise UnknownBaseModel(f"{pointer}: {message}", errors=[FieldProblem(pointer, message)])
        pinned.append(PinnedItem(task=row.name, task_id=row.id, split=split, base_model=base))
    return tuple(pinned)


def pin_patches(
    items: Sequence[PinnedItem], labels: Sequence[str], *, what: str, pointer: str
) -> tuple[PinnedItem, ...]:
    """Return the items with the patch of each: the one that is labeled like the task.

    what: the multitask checkpoint, in words.
    Raises: Invalid naming all tasks without a patch, and the labels there are.
    """
    known = ", ".join(labels)
    faults = [
        FieldProblem(
            f"{pointer}/{index}",
            f"{what} has no patch for task {item.task!r}; it has: {known}",
            near_match(item.task, labels),
        )
        for index, item in enumerate(items)
        if item.task not in labels
    ]
    if faults:
        raise Invalid(
            f"{faults[0].pointer}: {faults[0].message}. A model's `task` in the merge labels its patch.", errors=faults
        )
    return tuple(item.model_copy(update={"patch": item.task}) for item in items)


def needs_base(row: Task) -> bool:
    """Tell whether a task's head is made with a base model."""
    return isinstance(task_rows.spec(row).head, LabelPromptsHead)


def head_inputs(items: Sequence[PinnedItem]) -> list[JobInputRef]:
    """Return the base models behind the heads as inputs of a job: they cannot be deleted while it lives."""
    ids = dict.fromkeys(item.base_model for item in items if item.base_model is not None)
    return [JobInputRef(role="head", position=index, checkpoint_id=base) for index, base in enumerate(ids)]


def add_evaluation(session: Session, actor: Actor, spec: EvaluationSpec, terms: JobTerms) -> JobView:
    """Add an evaluation job; hint it after the commit."""
    names = [item.task for item in spec.tasks]
    document: dict[str, JsonValue] = spec.model_copy(update={"task": names[0] if len(names) == 1 else None}).model_dump(
        mode="json"
    )
    return jobs.add(
        session,
        actor,
        kind=JobKind.EVALUATE,
        spec=document,
        inputs=[JobInputRef(role="model", position=0, checkpoint_id=spec.checkpoint), *head_inputs(spec.tasks)],
        **terms.model_dump(),
    )


def split_fault(pointer: str, row: Task, split: str) -> FieldProblem | None:
    """Return what is wrong with a split of a task, if it has none of that name."""
    known = sorted(task_rows.spec(row).dataset)
    if split in known:
        return None
    return FieldProblem(pointer, f"task {row.name!r} has no {split} split; it has {', '.join(known)}")


def _item_faults(pointer: str, row: Task, split: str, count: int) -> list[FieldProblem]:
    fault = split_fault(pointer, row, split)
    faults = [] if fault is None else [fault]
    if count > 1:
        faults.append(
            FieldProblem(pointer, f"task {row.name!r} with split {split} is there {count} times; once is enough")
        )
    return faults
