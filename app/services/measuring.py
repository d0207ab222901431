"""What to measure: tasks by name, the base model behind each head, and the evaluation jobs that follow.

Shared by evaluations and by merges that ask for evaluations.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, JsonValue
from sqlalchemy.orm import Session

from app.db import checkpoints as checkpoint_rows
from app.db import equal_evaluations, metrics
from app.db import tasks as task_rows
from app.db.tables import Checkpoint, Task
from app.domain.catalog import load_catalog
from app.domain.checkpoints import CheckpointKind, Value, digest_json
from app.domain.errors import FieldProblem, Invalid, UnknownBaseModel, near_match
from app.domain.identifiers import new_id
from app.domain.jobs import JobKind
from app.domain.requests import EvaluationItem, WorkRequest
from app.domain.tasks import Measurement
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
    digest: str | None = None  # of all that the number depends on; pinned when the evaluation is accepted
    measured_by: str | None = None  # the evaluation that has measured equal weights already


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
                f"task {row.name!r} has a head that is made with a base model, and none can be derived: the checkpoint"
                " has no base_checkpoint in common. Give base_model, or make a task whose head names its base_model."
            )
            raise UnknownBaseModel(f"{pointer}: {message}", errors=[FieldProblem(pointer, message)])
        pinned.append(PinnedItem(task=row.name, task_id=row.id, split=split, base_model=base))
    return tuple(pinned)


def check_runnable(row: Checkpoint, ref: str, *, pointer: str) -> None:
    """Refuse a checkpoint that is no model by itself and lies on none. Raises: Invalid."""
    if row.kind == CheckpointKind.ADAPTER and row.base_checkpoint_id is None:
        message = f"{ref!r} is an adapter without a base_checkpoint, so there is no model to run; register it with one"
        raise Invalid(f"{pointer}: {message}.", errors=[FieldProblem(pointer, message)])


def pin_patches_of(
    session: Session, row: Checkpoint, items: tuple[PinnedItem, ...], *, pointer: str
) -> tuple[PinnedItem, ...]:
    """Return the items with their patches of a checkpoint, where it is a multitask one. Raises: as pin_patches."""
    if row.kind != CheckpointKind.MULTITASK:
        return items
    labels = [patch.task for patch in checkpoint_rows.load_manifest(session, row.id).patches]
    return pin_patches(items, labels, what=f"{row.name}@{row.version}", pointer=pointer)


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


def file_of(session: Session, item: PinnedItem) -> str:
    """Return the sha256 of the data file that an item is measured, or learned, on."""
    return task_rows.spec(session.get_one(Task, item.task_id)).dataset[item.split].sha256


def needs_base(row: Task) -> bool:
    """Tell whether a task's head is made with a base model."""
    return task_rows.spec(row).head_needs_base


def head_inputs(items: Sequence[PinnedItem]) -> list[JobInputRef]:
    """Return the base models behind the heads as inputs of a job: they cannot be deleted while it lives."""
    ids = dict.fromkeys(item.base_model for item in items if item.base_model is not None)
    return [JobInputRef(role="head", position=index, checkpoint_id=base) for index, base in enumerate(ids)]


def add_evaluation(
    session: Session, actor: Actor, spec: EvaluationSpec, terms: JobTerms, *, is_forced: bool = False
) -> JobView:
    """Add an evaluation job; hint it after the commit.

    What equal weights gave on an equal task is taken over unless `is_forced`; where that is everything, the job has
    succeeded at once.
    """
    pinned = _pin_digests(session, spec)
    digests = [item.digest for item in pinned if item.digest is not None]
    known = {} if is_forced else equal_evaluations.find(session, spec.checkpoint, digests)
    sources = [known[item.digest].job_id if item.digest in known else None for item in pinned]
    items = [item.model_copy(update={"measured_by": job}) for item, job in zip(pinned, sources, strict=True)]
    named = spec.model_copy(update={"tasks": tuple(items), "task": items[0].task if len(items) == 1 else None})
    common: dict[str, Any] = {
        **terms.model_dump(),
        "kind": JobKind.EVALUATE,
        "spec": named.model_dump(mode="json"),
        "inputs": [JobInputRef(role="model", position=0, checkpoint_id=spec.checkpoint), *head_inputs(items)],
    }
    if None in sources:
        return jobs.add(session, actor, **common)
    job_id = terms.job_id or new_id("job")
    result = keep_measurements(session, actor.project_id, job_id, named, ())
    common |= {"job_id": job_id, "result": result, "deduplicated_from": max(filter(None, sources))}
    return jobs.add(session, actor, **common)


def keep_measurements(
    session: Session, project_id: str, job_id: str, spec: EvaluationSpec, measured: Sequence[Measurement]
) -> dict[str, JsonValue]:
    """Keep the numbers of an evaluation, those taken over among them, and return its result, in the tasks' order."""
    taken = {item.task_id: item.digest for item in spec.tasks if item.measured_by is not None and item.digest}
    known = equal_evaluations.find(session, spec.checkpoint, list(taken.values()))
    numbers = [*measured, *(_taken_over(row, task) for task, digest in taken.items() for row in known[digest].metrics)]
    made = metrics.add(
        session,
        project_id,
        job_id=job_id,
        checkpoint_id=spec.checkpoint,
        measurements=[number for item in spec.tasks for number in numbers if number.task == item.task_id],
    )
    return {
        "checkpoint": spec.checkpoint,
        "artifacts": [],
        "evaluations": [],
        "metrics": [metric.model_dump(mode="json") for metric in made],
    }


def _pin_digests(session: Session, spec: EvaluationSpec) -> tuple[PinnedItem, ...]:
    ids = dict.fromkeys(filter(None, [spec.checkpoint, *(item.base_model for item in spec.tasks)]))
    models = {checkpoint_id: equal_evaluations.digest_model(session, checkpoint_id) for checkpoint_id in ids}
    return tuple(
        item.model_copy(update={"digest": _digest(session, item, models[spec.checkpoint], models)})
        for item in spec.tasks
    )


def _digest(session: Session, item: PinnedItem, model: str, models: Mapping[str, str]) -> str | None:
    task = session.get(Task, item.task_id)
    if task is None:
        return None  # deleted meanwhile; the job will say so
    return digest_json(
        {
            "model": model,
            "patch": item.patch,
            "task": task.digest,
            "split": item.split,
            "head": models[item.base_model] if item.base_model is not None else None,
            "evaluator_version": load_catalog().evaluator(task.kind).version,
        }
    )


def _taken_over(metric: Mapping[str, JsonValue], task_id: str) -> Measurement:
    kept = {name: metric[name] for name in Measurement.model_fields if name in metric}
    return Measurement.model_validate({**kept, "task": task_id})


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
