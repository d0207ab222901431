"""Adding tasks to a merged artifact: the merge request that does it, made of the artifact's own recipe."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from pydantic import JsonValue
from sqlalchemy.orm import Session

from app.db import artifacts
from app.db.tables import Checkpoint
from app.domain.catalog import Catalog, MethodCard, TaskAddition
from app.domain.checkpoints import Manifest
from app.domain.errors import FieldProblem, Invalid
from app.domain.recipes import Recipe
from app.domain.requests import MergeRequest, TaskAdditionRequest, request_of
from app.services.actors import Actor

NOT_OURS = {"method_version", "engine_version"}  # of the recipe: a newer release adds by its own version


def make_request(
    session: Session, catalog: Catalog, actor: Actor, artifact_id: str, request: TaskAdditionRequest
) -> MergeRequest:
    """Return the merge of the new models that gives the artifact with their tasks added.

    Raises: NotFound; ArtifactGone; Invalid for an artifact that is no merge, or whose method adds no tasks.
    """
    row = artifacts.find_checkpoint(session, actor.project_id, artifact_id)
    document = artifacts.find(session, actor.project_id, artifact_id).recipe
    if document is None:
        _refuse(f"{artifact_id} was not merged, so there is no method to add tasks by; merge its model with others")
    recipe = Recipe.model_validate(document)
    card = catalog.method(recipe.method)
    addition = _check_addition(catalog, card, recipe)
    output = request.output.model_dump(exclude_defaults=True)
    asked = {
        **{name: value for name, value in request_of(recipe).items() if name not in NOT_OURS},
        **_base(recipe, card, row),
        "method": addition.method or card.name,
        "parameters": _parameters(catalog, recipe, addition),
        "models": [model.model_dump(mode="json") for model in request.models],
        "onto": row.id,
        "output": {"name": row.name, "dtype": recipe.output_dtype, "shard_bytes": recipe.shard_bytes, **output},
        "evaluate": [item if isinstance(item, str) else item.model_dump() for item in request.evaluate],
        "force": request.force,
        "priority": request.priority,
        "max_attempts": request.max_attempts,
        "timeout_seconds": request.timeout_seconds,
    }
    return MergeRequest.model_validate(asked)


def check(
    card: MethodCard,
    request: MergeRequest,
    parameters: Mapping[str, JsonValue],
    inputs: tuple[Checkpoint | None, Manifest, Sequence[str | None]],
) -> None:
    """Check that a request's models can be added to what its `onto` names.

    inputs: the base model, the manifest of what is added to, the labels of the models. Raises: Invalid.
    """
    base, manifest, labels = inputs
    fault = (
        _method_fault(card, request, parameters)
        or _kind_fault(card, base, manifest)
        or _file_fault(card, manifest)
        or next(filter(None, (_label_fault(index, label, manifest) for index, label in enumerate(labels))), None)
    )
    if fault is not None:
        raise Invalid(f"{fault.pointer}: {fault.message}.", errors=[fault])


def _method_fault(card: MethodCard, request: MergeRequest, parameters: Mapping[str, JsonValue]) -> FieldProblem | None:
    if card.task_addition is None or card.task_addition.method is not None:
        return FieldProblem("/onto", f"{card.name} adds no models to a result; leave it out and merge all of them")
    if request.transforms or request.post_steps:
        return FieldProblem("/onto", "transforms and post-steps see all models at once; merge all of them together")
    places = [
        ("", parameters),
        *((f"/overrides/{index}", one.parameters) for index, one in enumerate(request.overrides)),
    ]
    for name, value in card.task_addition.fixed.items():
        for place, given in places:
            if given.get(name, value) != value:
                message = f"{card.name} adds models to a result only with {name} = {json.dumps(value)}"
                return FieldProblem(f"{place}/parameters/{name}", f"{message}, found {json.dumps(given[name])}")
    return None


def _kind_fault(card: MethodCard, base: Checkpoint | None, manifest: Manifest) -> FieldProblem | None:
    if base is None:
        return FieldProblem("/base_model", "what models add to a result is counted from their base_model; name it")
    if manifest.kind != card.produces:
        return FieldProblem("/onto", f"is {manifest.kind}, expected a {card.produces} result, which {card.name} gives")
    return None


def _file_fault(card: MethodCard, manifest: Manifest) -> FieldProblem | None:
    needed = card.task_addition.file if card.task_addition is not None else None
    if needed is None or needed in [file.path for file in manifest.files]:
        return None
    return FieldProblem(
        "/onto", f"has no {needed} beside its weights, which {card.name} adds to; merge all models again"
    )


def _label_fault(index: int, label: str | None, manifest: Manifest) -> FieldProblem | None:
    if label not in [patch.task for patch in manifest.patches]:
        return None
    return FieldProblem(f"/models/{index}/task", f"the artifact has a patch for task {label!r} already; name another")


def _check_addition(catalog: Catalog, card: MethodCard, recipe: Recipe) -> TaskAddition:
    if card.task_addition is None:
        able = ", ".join(one.name for one in catalog.methods if one.task_addition is not None)
        _refuse(f"what {card.name} gives depends on all models at once, so none can be added later; {able} can do that")
    if recipe.transforms or recipe.post_steps:
        _refuse("transforms and post-steps see all models at once, so none can be added later; merge them all again")
    if any(override.weights is not None or override.models is not None for override in recipe.overrides):
        _refuse("the recipe has overrides with values per model, which say nothing of new ones; merge them all again")
    return card.task_addition


def _base(recipe: Recipe, card: MethodCard, row: Checkpoint) -> dict[str, Any]:
    """Return the base of the merge: that of the recipe, or what the patches of a multitask artifact apply to."""
    if card.produces == "multitask":
        return {"base_model": row.id}
    return {"base_model": f"sha256:{recipe.base_model.content_digest}" if recipe.base_model is not None else None}


def _parameters(catalog: Catalog, recipe: Recipe, addition: TaskAddition) -> dict[str, Any]:
    if addition.method is None:
        return dict(recipe.parameters)
    known = catalog.method(addition.method).parameters["properties"]
    return {name: value for name, value in recipe.parameters.items() if name in known}


def _refuse(reason: str) -> NoReturn:
    raise Invalid(f"{reason}.", errors=[FieldProblem("/path/artifact_id", reason)])
