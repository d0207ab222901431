"""What a merge that learns looks at: tasks with a split, pinned with the base model behind each head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import JsonValue
from sqlalchemy.orm import Session

from app.db import checkpoints as checkpoint_rows
from app.db import tasks as task_rows
from app.db.tables import Checkpoint, Task
from app.domain.catalog import Catalog, MethodCard
from app.domain.checkpoints import Manifest
from app.domain.errors import FieldProblem, Invalid
from app.domain.parameter_checks import is_gradient
from app.domain.recipes import PinnedCheckpoint, PinnedTask, RecipeData
from app.domain.requests import DataRequest, DataTask, MergeRequest, StepRequest
from app.domain.statistics_files import find_statistics, statistics_file
from app.services import measuring
from app.services.actors import Actor
from app.services.measuring import PinnedItem


def expand(catalog: Catalog, request: MergeRequest) -> MergeRequest:
    """Return the request with what its method's name says beside the method: `awd_adamerging` has a transform `awd`."""
    card = next((card for card in catalog.methods if request.method in card.presets), None)
    if card is None:
        return request
    preset = card.presets[request.method]
    named = {step.name for step in request.transforms}
    before = [StepRequest(name=name) for name in preset.transforms if name not in named]
    return request.model_copy(
        update={
            "method": card.name,
            "transforms": [*before, *request.transforms],
            "parameters": {**preset.parameters, **request.parameters},
        }
    )


@dataclass(frozen=True)
class Learner:
    """A method with its effective parameters, and the kinds of tasks that it can learn on."""

    card: MethodCard
    parameters: Mapping[str, JsonValue]
    kinds: tuple[str, ...]  # on which anything can be learned
    class_kinds: tuple[str, ...]  # of these, those with probabilities of classes
    is_given_statistics: bool = False

    @property
    def learns(self) -> bool:
        """Whether the merge looks at data."""
        return self.card.learns(self.parameters) and not self.is_given_statistics


def learner_of(
    catalog: Catalog, card: MethodCard, parameters: Mapping[str, JsonValue], request: MergeRequest
) -> Learner:
    """Return what decides whether and on what a merge learns."""
    kinds = tuple(one.name for one in catalog.evaluators if one.is_learnable)
    class_kinds = tuple(one.name for one in catalog.evaluators if one.is_learnable and one.has_class_logits)
    return Learner(card, parameters, kinds, class_kinds, bool(request.statistics))


def check(learner: Learner, request: MergeRequest) -> None:
    """Refuse data for a merge that looks at none, and parts that a method which learns has no use for. Raises: Invalid.

    Coefficients are learned for the whole model at once, under one set of parameters.
    """
    card = learner.card
    faults: list[FieldProblem] = []
    if request.data is not None and not learner.learns:
        given = "statistics" if learner.is_given_statistics else card.learned
        why = "looks at no data" if card.data == "none" else f"learns nothing where {given} is given"
        faults.append(FieldProblem("/data", f"{card.name} {why}; leave data out"))
    if request.statistics and card.statistics is None:
        faults.append(FieldProblem("/statistics", f"{card.name} takes no statistics; leave them out"))
    if learner.learns or learner.is_given_statistics:
        why = f"{card.name} learns for the whole model under one set of parameters"
        if request.overrides:
            faults.append(FieldProblem("/overrides", f"{why}; leave overrides out"))
        faults += [
            FieldProblem(f"/parameters/{name}", f"{why}; give one number")
            for name, value in request.parameters.items()
            if is_gradient(card.parameters, name, value)
        ]
    _refuse(faults)


def pin(  # noqa: PLR0913 (a request, and what is known of it by now)
    session: Session,
    actor: Actor,
    request: MergeRequest,
    learner: Learner,
    models: Sequence[Checkpoint],
    *,
    default_base: str | None,
) -> tuple[PinnedItem, ...]:
    """Return the tasks that a merge learns on, if it does, each with its split and the base model behind its head.

    Raises: UnknownTask, UnknownCheckpoint; UnknownBaseModel; Invalid for a model without a task, a split that a task
        has not, a kind of task that nothing can be learned on, or a number of tasks that is not that of the models.
    """
    if not learner.learns:
        return ()
    data = request.data or DataRequest()
    asked = _asked(learner.card, request, data, models)
    rows = task_rows.resolve(session, actor.project_id, [(pointer, item.task) for pointer, item in asked])
    faults = [
        measuring.split_fault(pointer, row, data.split) or _kind_fault(pointer, row, learner)
        for (pointer, _), row in zip(asked, rows, strict=True)
    ]
    _refuse([fault for fault in faults if fault is not None])
    return tuple(
        _pin_one(session, actor, (pointer, item), row, data.split, default_base)
        for (pointer, item), row in zip(asked, rows, strict=True)
    )


def check_point(
    session: Session, learner: Learner, parameters: Mapping[str, JsonValue], items: Sequence[PinnedItem]
) -> None:
    """Refuse parameters with which the merge cannot learn on the tasks pinned for others. Raises: Invalid."""
    at_point = replace(learner, parameters=parameters)
    need = learner.card.needs_classes
    if need is None or not at_point.learns:
        return
    pointer = "/parameters/" + next(iter(need.where), "")
    rows = [session.get_one(Task, item.task_id) for item in items]
    _refuse([fault for row in rows if (fault := _kind_fault(pointer, row, at_point)) is not None])


def warn_same_examples(session: Session, learning: Sequence[PinnedItem], chosen_by: Sequence[PinnedItem]) -> str | None:
    """Return what to tell of a sweep whose points are chosen by the examples that they learn on; None where not."""
    learned_on = {measuring.file_of(session, item) for item in learning}
    same = [item for item in chosen_by if measuring.file_of(session, item) in learned_on]
    if not same:
        return None
    named = ", ".join(f"{item.split} of {item.task}" for item in same)
    return (
        f"Each point learns on examples that points are chosen by ({named}): one that fits these too closely wins. "
        "Name another split in merge.data.split, such as train, or in select_on.split."
    )


def check_statistics(
    card: MethodCard, request: MergeRequest, models: Sequence[Checkpoint], sources: Sequence[Manifest]
) -> None:
    """Refuse earlier results that do not hold the statistics of every model. Raises: Invalid."""
    if not sources or card.statistics is None:
        return
    digests = [str(row.weights_digest) for row in models]
    found = find_statistics(card.statistics, digests, [manifest.files for manifest in sources])
    _refuse(
        [
            FieldProblem(
                f"/models/{index}/checkpoint",
                f"found no {statistics_file(card.statistics, digest)} in {', '.join(request.statistics)}, expected "
                f"the statistics of {model.checkpoint}; add a result of {card.name} that it was merged in",
            )
            for index, (model, digest, at) in enumerate(zip(request.models, digests, found, strict=True))
            if at is None
        ]
    )


def describe(session: Session, request: MergeRequest, items: Sequence[PinnedItem]) -> RecipeData | None:
    """Return the same as a recipe names it: by content."""
    if not items:
        return None
    data = request.data or DataRequest()
    return RecipeData(
        split=data.split,
        max_examples=data.max_examples,
        tasks=tuple(_describe_one(session, item) for item in items),
        transductive=data.split == "test",
    )


def _kind_fault(pointer: str, row: Task, learner: Learner) -> FieldProblem | None:
    why = learner.card.why_classes(learner.parameters)
    known = learner.kinds if why is None else learner.class_kinds
    if row.kind in known:
        return None
    found = f"task {row.name!r} is of kind {row.kind}"
    if row.kind in learner.kinds:
        found += f", whose models give no probabilities of classes, and {learner.card.name} {why}"
    return FieldProblem(pointer, f"{found}; name tasks of kind {', '.join(known)}")


def _asked(
    card: MethodCard, request: MergeRequest, data: DataRequest, models: Sequence[Checkpoint]
) -> list[tuple[str, DataTask]]:
    """Return the tasks by (pointer, task): those that `data` lists, else each model's."""
    if data.tasks is not None:
        if card.data_of == "models" and len(data.tasks) != len(models):
            found = f"found {len(data.tasks)} tasks, expected one for each of the {len(models)} models, in their order"
            _refuse([FieldProblem("/data/tasks", found)])
        listed = [item if isinstance(item, DataTask) else DataTask(task=item) for item in data.tasks]
        return [(f"/data/tasks/{index}", item) for index, item in enumerate(listed)]
    if card.data_of == "merge":
        _refuse([FieldProblem("/data/tasks", f"{card.name} tries merges on tasks; name them")])
    named = [model.task or row.task for model, row in zip(request.models, models, strict=True)]
    _refuse(
        [
            FieldProblem(
                f"/models/{index}/task",
                f"{card.name} learns on each model's task, and models[{index}] names none; give a task that is made "
                "(POST /v1/tasks)",
            )
            for index, task in enumerate(named)
            if task is None
        ]
    )
    return [(f"/models/{index}/task", DataTask(task=task)) for index, task in enumerate(named) if task is not None]


def _pin_one(  # noqa: PLR0913 (a task, and what its head may be made with)
    session: Session, actor: Actor, asked: tuple[str, DataTask], row: Task, split: str, default_base: str | None
) -> PinnedItem:
    pointer, item = asked
    if item.head_base_model is not None and measuring.needs_base(row):
        reference = (f"{pointer}/head_base_model", item.head_base_model)
        base = checkpoint_rows.resolve(session, actor.project_id, [reference])[0]
        return PinnedItem(task=row.name, task_id=row.id, split=split, base_model=base.id)
    return measuring.pin_bases(session, [(row, split)], default=default_base, pointer=pointer)[0]


def _describe_one(session: Session, item: PinnedItem) -> PinnedTask:
    row = session.get_one(Task, item.task_id)
    head = session.get_one(Checkpoint, item.base_model) if item.base_model is not None else None
    pinned = None
    if head is not None:
        pinned = PinnedCheckpoint(content_digest=str(head.content_digest), weights_digest=str(head.weights_digest))
    return PinnedTask(digest=row.digest, head_base_model=pinned)


def _refuse(faults: Sequence[FieldProblem]) -> None:
    if faults:
        raise Invalid(f"{faults[0].pointer}: {faults[0].message}.", errors=list(faults))
