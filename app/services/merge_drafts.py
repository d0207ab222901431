"""What a merge request means: its method checked, everything it names found and pinned, its recipe.

Plans and jobs are made from the same draft (merges.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue
from sqlalchemy.orm import Session

from app.db import bases
from app.db import checkpoints as checkpoint_rows
from app.db.tables import Checkpoint
from app.domain import merge_checks, passthrough
from app.domain.adapters import AdapterSpace
from app.domain.catalog import MethodCard
from app.domain.checkpoints import CheckpointKind, Manifest, Value, digest_json
from app.domain.errors import FieldProblem, Invalid
from app.domain.kind_checks import check_kinds
from app.domain.parts import Parallelism
from app.domain.recipes import PinnedCheckpoint, Recipe, RecipeModel
from app.domain.requests import MergeRequest
from app.domain.views.jobs import JobInputRef
from app.services import measuring, merge_data
from app.services import merge_additions as additions
from app.services.actors import Actor
from app.services.measuring import PinnedItem
from app.services.merge_data import Learner
from app.services.wiring import Wiring

# How the job is run has columns of its own; the versions are the recipe's.
NOT_IN_SPEC = {"priority", "max_attempts", "timeout_seconds", "method_version", "engine_version", "n_blocks"}


class MergeSpec(Value):
    """A merge job's spec: the request with its refs pinned, and the recipe that decides the bytes."""

    method: str
    base_model: str | None
    models: tuple[dict[str, JsonValue], ...]
    parameters: dict[str, JsonValue]
    seed: int
    output: dict[str, JsonValue]
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    evaluate: tuple[PinnedItem, ...]
    force: bool
    nan_policy: str
    tensors: str
    merge_buffers: bool
    adapter_space: AdapterSpace | None = None
    overrides: tuple[dict[str, JsonValue], ...] = ()
    transforms: tuple[dict[str, JsonValue], ...] = ()
    post_steps: tuple[dict[str, JsonValue], ...] = ()
    onto: str | None = None
    data: dict[str, JsonValue] | None = None
    learning: tuple[PinnedItem, ...] = ()  # the tasks that the method learns on
    statistics: tuple[str, ...] = ()  # the results whose statistics it uses
    base_checkpoint: str | None  # what the result counts as fine-tuned from
    recipe: Recipe
    parallelism: Parallelism = "auto"
    n_parts: int = 1  # into which it is split

    @property
    def tags(self) -> dict[str, str]:
        """The result's tags."""
        tags = self.output.get("tags")
        return {key: str(value) for key, value in tags.items()} if isinstance(tags, dict) else {}


@dataclass(frozen=True)
class Draft:
    """A request with everything it names found and pinned."""

    card: MethodCard
    recipe: Recipe
    base: Checkpoint | None
    models: tuple[Checkpoint, ...]
    base_manifest: Manifest | None
    manifests: tuple[Manifest, ...]
    evaluate: tuple[PinnedItem, ...]
    base_checkpoint: str | None
    named: str  # digest of what the request named
    learner: Learner
    onto: Checkpoint | None = None
    learning: tuple[PinnedItem, ...] = ()
    statistics: tuple[Checkpoint, ...] = ()

    @property
    def inputs(self) -> list[JobInputRef]:
        """The checkpoints that the job reads."""
        refs = [
            JobInputRef(role="model", position=index, checkpoint_id=row.id) for index, row in enumerate(self.models)
        ]
        if self.base is not None:
            refs.append(JobInputRef(role="base_model", position=0, checkpoint_id=self.base.id))
        if self.onto is not None and self.onto is not self.base:
            refs.append(JobInputRef(role="model", position=len(refs), checkpoint_id=self.onto.id))
        refs += [
            JobInputRef(role="model", position=len(refs) + index, checkpoint_id=row.id)
            for index, row in enumerate(self.statistics)
        ]
        return [*refs, *measuring.head_inputs([*self.evaluate, *self.learning])]


def draft(session: Session, wiring: Wiring, actor: Actor, request: MergeRequest) -> Draft:
    """Find and pin everything that a request names.

    Raises: UnknownMethod, InvalidParameters, Invalid, UnknownCheckpoint, CheckpointNotReady, UnknownTask,
        UnknownBaseModel.
    """
    card, parameters = merge_checks.check_recipe(wiring.catalog, request)
    merge_checks.check_versions(card, request)
    merge_checks.refuse_post_steps(card, request)
    learner = merge_data.learner_of(wiring.catalog, card, parameters, request)
    merge_data.check(learner, request)
    named = _find(session, actor, request, learner)
    base, onto, models = named.base, named.onto, named.models
    space = _check_space(card, request, base, models)
    _check_adapter_bases(session, base, models)
    known = [row for row in (base, onto, *models, *named.statistics) if row is not None]
    manifests = checkpoint_rows.load_manifests(session, list({row.id for row in known}))
    if request.n_blocks is not None:
        passthrough.check_depth([manifests[row.id] for row in models], request.n_blocks)
    merge_data.check_statistics(card, request, models, [manifests[row.id] for row in named.statistics])
    labels = _label_models(card, request, models)
    if onto is not None:
        additions.check(card, request, parameters, (base, manifests[onto.id], labels))
    there = [patch.task for patch in manifests[onto.id].patches] if onto is not None else []
    return Draft(
        card=card,
        recipe=_recipe(wiring, request, card, parameters, _Inputs(base, onto, models, labels)).model_copy(
            update={
                "adapter_space": space,
                "data": merge_data.describe(session, request, named.learning),
                "statistics": tuple(PinnedCheckpoint(**_digests(row)) for row in named.statistics),
            }
        ),
        base=base,
        models=models,
        base_manifest=manifests[base.id] if base is not None else None,
        manifests=tuple(manifests[row.id] for row in models),
        evaluate=_with_patches([*there, *labels], named.evaluate),
        base_checkpoint=named.base_checkpoint,
        named=named.key,
        onto=onto,
        learner=learner,
        learning=named.learning,
        statistics=named.statistics,
    )


def still_holds(session: Session, actor: Actor, request: MergeRequest, made: Draft) -> bool:
    """Tell whether the request names what it named when the draft was made; what it names is locked as in `draft`.

    Raises: as `draft` for what is not there any more.
    """
    return _find(session, actor, request, made.learner).key == made.named


@dataclass(frozen=True)
class _Named:
    """What a request names."""

    base: Checkpoint | None
    onto: Checkpoint | None
    models: tuple[Checkpoint, ...]
    evaluate: tuple[PinnedItem, ...]
    learning: tuple[PinnedItem, ...]
    statistics: tuple[Checkpoint, ...]
    base_checkpoint: str | None

    @property
    def key(self) -> str:
        """Digest of the rows and of what may change in them."""
        rows = [row and [row.id, row.task, row.base_checkpoint_id] for row in self._rows]
        items = [item.model_dump(mode="json") for item in (*self.evaluate, *self.learning)]
        return digest_json([rows, items, self.base_checkpoint])

    @property
    def _rows(self) -> list[Checkpoint | None]:
        return [self.base, self.onto, *self.models, *self.statistics]


def _find(session: Session, actor: Actor, request: MergeRequest, learner: Learner) -> _Named:
    base, onto, models = _resolve(session, actor, request)
    sources = [(f"/statistics/{index}", reference) for index, reference in enumerate(request.statistics)]
    pinned = measuring.pin_items(session, actor.project_id, request.evaluate, pointer="/evaluate")
    shared = bases.shared_root(session, [row.id for row in ([base] if base is not None else models)])
    return _Named(
        base=base,
        onto=onto,
        models=tuple(models),
        evaluate=measuring.pin_bases(session, pinned, default=shared, pointer="/evaluate"),
        learning=merge_data.pin(session, actor, request, learner, models, default_base=shared),
        statistics=tuple(checkpoint_rows.resolve(session, actor.project_id, sources)),
        base_checkpoint=_base_checkpoint(base, onto) or shared,
    )


def _base_checkpoint(base: Checkpoint | None, onto: Checkpoint | None) -> str | None:
    """Return what the result counts as fine-tuned from: the same as what it is added to, else the base."""
    if onto is not None:
        return onto.base_checkpoint_id
    return base.id if base is not None else None


@dataclass(frozen=True)
class _Inputs:
    """The checkpoints of a recipe."""

    base: Checkpoint | None
    onto: Checkpoint | None
    models: Sequence[Checkpoint]
    labels: Sequence[str | None]  # of the models' patches


def _resolve(
    session: Session, actor: Actor, request: MergeRequest
) -> tuple[Checkpoint | None, Checkpoint | None, list[Checkpoint]]:
    named = [
        (name, ref) for name, ref in (("base_model", request.base_model), ("onto", request.onto)) if ref is not None
    ]
    refs = [(f"/models/{index}/checkpoint", model.checkpoint) for index, model in enumerate(request.models)]
    rows = checkpoint_rows.resolve(session, actor.project_id, [*((f"/{name}", ref) for name, ref in named), *refs])
    found = {name: row for (name, _), row in zip(named, rows, strict=False)}
    return found.get("base_model"), found.get("onto"), rows[len(named) :]


def _check_space(
    card: MethodCard, request: MergeRequest, base: Checkpoint | None, models: Sequence[Checkpoint]
) -> AdapterSpace | None:
    kinds = [CheckpointKind(row.kind) for row in models]
    return check_kinds(card, request.adapter_space, base=CheckpointKind(base.kind) if base else None, models=kinds)


def _check_adapter_bases(session: Session, base: Checkpoint | None, models: Sequence[Checkpoint]) -> None:
    """Refuse adapters that were registered as lying on another model than the base of the request."""
    faults: list[FieldProblem] = []
    for index, row in enumerate(models):
        own = session.get(Checkpoint, row.base_checkpoint_id) if row.base_checkpoint_id is not None else None
        if base is None or own is None or row.kind != CheckpointKind.ADAPTER:
            continue
        if own.weights_digest != base.weights_digest:
            message = (
                f"models[{index}] lies on {own.name}@{own.version}, and the base model is {base.name}@{base.version}, "
                "which has other weights; name the base the adapters share, or fuse them first (lora_fuse)"
            )
            faults.append(FieldProblem(f"/models/{index}/checkpoint", message))
    if faults:
        raise Invalid(f"{faults[0].pointer}: {faults[0].message}.", errors=faults)


def _recipe(
    wiring: Wiring,
    request: MergeRequest,
    card: MethodCard,
    parameters: dict[str, JsonValue],
    inputs: _Inputs,
) -> Recipe:
    base, onto = inputs.base, inputs.onto
    return Recipe(
        method=card.name,
        method_version=card.version,
        base_model=PinnedCheckpoint(**_digests(base)) if base is not None else None,
        models=tuple(
            RecipeModel(
                **_digests(row),
                weight=model.weight,
                task=label,
                parameters=merge_checks.check_model(wiring.catalog, card, request, at),
            )
            for at, (model, row, label) in enumerate(zip(request.models, inputs.models, inputs.labels, strict=True))
        ),
        parameters=parameters,
        seed=request.seed,
        output_dtype=request.output.dtype,
        shard_bytes=request.output.shard_bytes or wiring.defaults.shard_bytes,
        include=tuple(request.include),
        exclude=tuple(request.exclude),
        nan_policy=request.nan_policy,
        tensors=request.tensors,
        merge_buffers=request.merge_buffers,
        overrides=merge_checks.check_overrides(
            wiring.catalog, card, request.overrides, parameters, n_models=len(request.models)
        ),
        transforms=merge_checks.check_steps(wiring.catalog, "transforms", request),
        post_steps=merge_checks.check_steps(wiring.catalog, "post_steps", request),
        onto=PinnedCheckpoint(**_digests(onto)) if onto is not None else None,
    )


def _label_models(card: MethodCard, request: MergeRequest, models: Sequence[Checkpoint]) -> list[str | None]:
    """Return the label of each model's patch; none for a dense result, where it would only make equal recipes differ.

    Raises: Invalid where two models have one label.
    """
    if card.produces != "multitask":
        return [None] * len(models)
    labels = [model.task or row.task or row.name for model, row in zip(request.models, models, strict=True)]
    faults = [
        FieldProblem(
            f"/models/{index}/task",
            f"models[{labels.index(label)}] has the task {label!r}, too; each patch needs a label of its own",
        )
        for index, label in enumerate(labels)
        if labels.index(label) < index
    ]
    if faults:
        raise Invalid(f"{faults[0].pointer}: {faults[0].message}.", errors=faults)
    return list(labels)


def _with_patches(labels: Sequence[str | None], items: tuple[PinnedItem, ...]) -> tuple[PinnedItem, ...]:
    known = [label for label in labels if label is not None]
    return measuring.pin_patches(items, known, what="the merge", pointer="/evaluate") if known else items


def _digests(row: Checkpoint) -> dict[str, Any]:
    return {"content_digest": row.content_digest, "weights_digest": row.weights_digest}


def specify(request: MergeRequest, made: Draft, *, n_parts: int = 1) -> MergeSpec:
    """Return the job's spec of a request."""
    document = request.model_dump(mode="json", exclude=NOT_IN_SPEC)
    # Hyphens: `task_arithmetic-…` would begin like the id of a task.
    name = request.output.name or f"{made.card.name.replace('_', '-')}-{made.recipe.digest[:8]}"
    models = [
        {**model.model_dump(mode="json"), "checkpoint": row.id}
        for model, row in zip(request.models, made.models, strict=True)
    ]
    return MergeSpec.model_validate(
        document
        | {
            "method": made.card.name,
            "base_model": made.base.id if made.base is not None else None,
            "models": models,
            "parameters": made.recipe.parameters,
            "output": {**document["output"], "name": name},
            "evaluate": made.evaluate,
            "learning": made.learning,
            "statistics": [row.id for row in made.statistics],
            "onto": made.onto.id if made.onto is not None else None,
            "base_checkpoint": made.base_checkpoint,
            "recipe": made.recipe,
            "n_parts": n_parts,
        }
    )
