"""What a merge request says, checked against the cards: method, parameters, overrides, steps, versions.

What it names (checkpoints, tasks) is found and checked by app/services/merge_drafts.py.
"""

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from app.domain import passthrough
from app.domain.catalog import Catalog, MethodCard, StepKind
from app.domain.errors import FieldProblem, Invalid
from app.domain.recipes import ENGINE_VERSION, Override, PinnedStep
from app.domain.requests import MergeRequest, OverrideRequest


def check_recipe(catalog: Catalog, request: MergeRequest) -> tuple[MethodCard, dict[str, JsonValue]]:
    """Return the method's card and the effective parameters of a request.

    Raises: UnknownMethod; InvalidParameters, Invalid naming every fault at once.
    """
    card, parameters = catalog.check(
        request.method,
        request.parameters,
        has_base_model=request.base_model is not None,
        weights=[model.weight for model in request.models],
        model_parameters=[model.parameters for model in request.models],
    )
    if not card.copies:
        return card, parameters
    _refuse_changes(card, request)
    return card, passthrough.pin_models(parameters, [model.checkpoint for model in request.models])


def check_overrides(
    catalog: Catalog,
    card: MethodCard,
    asked: Sequence[OverrideRequest],
    parameters: Mapping[str, JsonValue],
    *,
    n_models: int,
) -> tuple[Override, ...]:
    """Return overrides as the recipe has them. parameters: the effective ones of all other tensors.

    Raises: InvalidParameters, Invalid naming every fault of the first that has any.
    """
    cards = (card, *catalog.cards_inside(card, parameters))
    overrides: list[Override] = []
    for index, one in enumerate(asked):
        pointer = f"/overrides/{index}"
        own = catalog.check_override(
            card, one.parameters, n_models=n_models, pointer=f"{pointer}/parameters", elsewhere=parameters
        )
        weights = None if one.weights is None else tuple(_weight_of(weight) for weight in one.weights)
        faults = [
            fault for user in cards for fault in _weights_faults(user, weights, n_models, pointer=f"{pointer}/weights")
        ]
        if faults:
            raise Invalid(f"{faults[0].pointer}: {faults[0].message}.", errors=faults)
        models = None if one.models is None else _check_models(catalog, card, one.models, n_models, f"{pointer}/models")
        overrides.append(Override(match=one.match, parameters=own, weights=weights, models=models))
    return tuple(overrides)


def check_model(catalog: Catalog, card: MethodCard, request: MergeRequest, model: int) -> dict[str, JsonValue]:
    """Return a model's own parameters as the recipe has them. Raises: InvalidParameters."""
    pointer = f"/models/{model}/parameters"
    own, n_models = request.models[model].parameters, len(request.models)
    return catalog.check_override(card, own, n_models=n_models, pointer=pointer, elsewhere={})


def check_steps(catalog: Catalog, kind: StepKind, request: MergeRequest) -> tuple[PinnedStep, ...]:
    """Return a request's transforms or post-steps as the recipe has them, with their effective parameters.

    Raises: Invalid for an unknown name, another version, or no base model; InvalidParameters.
    """
    asked = request.transforms if kind == "transforms" else request.post_steps
    if asked and request.base_model is None:
        message = f"{asked[0].name} changes task vectors, which need a base_model; name the pre-trained checkpoint"
        raise Invalid(f"/base_model: {message}.", errors=[FieldProblem("/base_model", message)])
    steps: list[PinnedStep] = []
    for index, one in enumerate(asked):
        pointer = f"/{kind}/{index}"
        card, parameters = catalog.check_step(kind, one.name, one.parameters, pointer=pointer)
        if one.version not in (None, card.version):
            message = f"the recipe is of version {one.version} of {card.name}, this service has version {card.version}"
            problem = FieldProblem(f"{pointer}/version", message)
            raise Invalid(f"{pointer}: {message}. Merge with the release it is of.", errors=[problem])
        steps.append(PinnedStep(name=card.name, version=card.version, parameters=parameters))
    return tuple(steps)


def refuse_post_steps(card: MethodCard, request: MergeRequest) -> None:
    """Refuse post-steps on what patches are kept over. Raises: Invalid."""
    if request.post_steps and card.produces == "multitask":
        message = (
            f"{card.name} keeps patches over what it merges, so that nothing may change it afterwards; merge with a "
            "dense method and the post-steps first, then by post_pruning with that result as base_model"
        )
        raise Invalid(f"/post_steps: {message}.", errors=[FieldProblem("/post_steps", message)])


def check_versions(card: MethodCard, request: MergeRequest) -> None:
    """Refuse a request that asks for the bytes of another version. Raises: Invalid."""
    pairs = (
        ("method_version", request.method_version, card.version),
        ("engine_version", request.engine_version, ENGINE_VERSION),
    )
    faults = [
        FieldProblem(f"/{name}", f"the recipe is of {name} {asked}, this service has {here}: the bytes would differ")
        for name, asked, here in pairs
        if asked not in (None, here)
    ]
    if faults:
        raise Invalid(f"{faults[0].pointer}: {faults[0].message}. Merge with the release it is of.", errors=faults)


def _refuse_changes(card: MethodCard, request: MergeRequest) -> None:
    """Refuse what would change tensors that are only copied."""
    names = ("include", "exclude", "overrides", "transforms", "post_steps")
    message = f"{card.name} copies every tensor of the result; leave it out"
    faults = [FieldProblem(f"/{name}", message) for name in names if getattr(request, name)]
    if faults:
        raise Invalid(f"{faults[0].pointer}: {message}.", errors=faults)


def _check_models(
    catalog: Catalog,
    card: MethodCard,
    models: Sequence[Mapping[str, JsonValue] | None],
    n_models: int,
    pointer: str,
) -> tuple[dict[str, JsonValue] | None, ...]:
    """Return what an override says of each model alone."""
    faults = [
        FieldProblem(f"{pointer}/{index}/{name}", f"{card.name} takes no {name} per model; give it for all models")
        for index, own in enumerate(models)
        for name in own or ()
        if name not in card.per_model
    ]
    if len(models) != n_models:
        message = f"found {len(models)} items, expected one for each of the {n_models} models"
        faults.append(FieldProblem(pointer, message))
    if faults:
        raise Invalid(f"{faults[0].pointer}: {faults[0].message}.", errors=faults)
    return tuple(
        None
        if own is None
        else catalog.check_override(card, own, n_models=n_models, pointer=f"{pointer}/{index}", elsewhere={})
        for index, own in enumerate(models)
    )


def _weight_of(weight: float | list[float] | None) -> float | tuple[float, ...] | None:
    if weight is None:
        return None
    return tuple(float(step) for step in weight) if isinstance(weight, list) else float(weight)


def _weights_faults(
    card: MethodCard, weights: Sequence[float | tuple[float, ...] | None] | None, n_models: int, *, pointer: str
) -> list[FieldProblem]:
    if weights is None:
        return []
    if len(weights) != n_models:
        return [FieldProblem(pointer, f"found {len(weights)} weights, expected one for each of the {n_models} models")]
    if card.weights == "unused":
        return [FieldProblem(pointer, f"{card.name} uses no weights; leave them out")]
    given = [weight for weight in weights if weight is not None]
    steps = [step for weight in given for step in (weight if isinstance(weight, tuple) else (weight,))]
    if card.weights == "non_negative" and min(steps, default=0) < 0:
        return [FieldProblem(pointer, f"{card.name} needs weights >= 0, found {min(steps)}")]
    return []
