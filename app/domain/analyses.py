"""The check of an analysis request against its kind's card: how many models and tasks, which parameters and merges."""

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from app.domain.catalog import AnalysisCard, Catalog
from app.domain.checkpoints import CheckpointKind, Manifest
from app.domain.errors import FieldProblem, Invalid, InvalidParameters
from app.domain.parameter_checks import fill_defaults, schema_faults
from app.domain.parameters import NestedMethod, NestedStep
from app.domain.planning import plan_merge
from app.domain.recipes import PinnedCheckpoint, Recipe, RecipeModel

SHARD_BYTES = 1 << 53  # one file, which is never written


def check_analysis(  # noqa: PLR0913 (a request in its parts)
    catalog: Catalog,
    kind: str,
    parameters: Mapping[str, JsonValue],
    *,
    n_models: int,
    n_tasks: int,
    has_merged: bool = False,
) -> tuple[AnalysisCard, dict[str, JsonValue]]:
    """Return the card and the effective parameters (defaults filled in) of an analysis request.

    has_merged: a merge is named that is there already; then there is no parameter that says how to make one.
    Raises: UnknownAnalysis with the nearest name; Invalid for a number of models or tasks that the kind cannot use;
        InvalidParameters naming every fault at once, and for a merge that learns; for a merge method among the
        parameters as Catalog.check.
    """
    card = catalog.analysis(kind)
    faults = [*_model_faults(card, n_models), *_task_faults(card, n_models, n_tasks)]
    if has_merged:
        faults += _merged_faults(card, parameters)
    if faults:
        raise Invalid(f"{card.name}: {faults[0].message}.", errors=faults)
    faults = schema_faults(card.parameters, dict(parameters), pointer="/parameters")
    if faults:
        raise InvalidParameters(f"{card.name}: {faults[0].message}", errors=faults)
    effective = fill_defaults(card.parameters, parameters)
    for name in card.steps:
        effective[name] = _check_steps(catalog, effective[name], pointer=f"/parameters/{name}")
    if has_merged:
        return card, {name: value for name, value in effective.items() if name not in card.nested}
    n_merged = min(n_models, 2) if card.merges_subsets else n_models
    for name in card.nested:
        merge = catalog.check_nested(name, effective[name], has_base_model=True, weights=[1.0] * n_merged)
        _refuse_learning(catalog, card, name, merge)
        effective[name] = merge
    return card, effective


def check_merges(
    catalog: Catalog,
    card: AnalysisCard,
    parameters: Mapping[str, JsonValue],
    *,
    base: Manifest,
    models: Sequence[Manifest],
) -> None:
    """Check that the merges of all models that effective parameters name fit them: as a plan of each would.

    Raises: InvalidParameters, Invalid, IncompatibleCheckpoints, with pointers into the analysis.
    """
    if card.merges_subsets:
        return
    for name in card.nested:
        if name not in parameters:
            continue
        recipe = recipe_of_merge(
            catalog,
            NestedMethod.model_validate(parameters[name]),
            base=_pinned(base),
            models=[RecipeModel(**_pinned(model).model_dump()) for model in models],
            has_adapters=any(model.kind is CheckpointKind.ADAPTER for model in models),
        )
        try:
            plan_merge(recipe, base, models, catalog.method(recipe.method), catalog.cards_beside(recipe))
        except InvalidParameters as error:
            place = f"/parameters/{name}"
            faults = [FieldProblem(place + one.pointer, one.message, one.did_you_mean) for one in error.errors]
            raise InvalidParameters(f"{place}: {error.detail}", errors=faults) from None


def recipe_of_merge(
    catalog: Catalog,
    method: NestedMethod,
    *,
    base: PinnedCheckpoint,
    models: Sequence[RecipeModel],
    has_adapters: bool,
) -> Recipe:
    """Return the recipe of a merge that an analysis makes, measures, and throws away. Raises: as Catalog.check."""
    weights = [model.weight for model in models]
    card, parameters = catalog.check(method.method, method.parameters, has_base_model=True, weights=weights)
    return Recipe(
        method=card.name,
        method_version=card.version,
        base_model=base,
        models=tuple(models),
        parameters=parameters,
        shard_bytes=SHARD_BYTES,
        adapter_space="delta" if has_adapters else None,
    )


def _check_steps(catalog: Catalog, steps: JsonValue, *, pointer: str) -> list[JsonValue]:
    """Return transforms with their versions and effective parameters. Raises: Invalid, InvalidParameters."""
    checked: list[JsonValue] = []
    for index, asked in enumerate(steps if isinstance(steps, list) else []):
        step, place = NestedStep.model_validate(asked), f"{pointer}/{index}"
        card, parameters = catalog.check_step("transforms", step.name, step.parameters, pointer=place)
        if step.version not in (None, card.version):
            fault = f"{card.name} is of version {card.version} here, found {step.version}; leave it out"
            raise InvalidParameters(f"{place}: {fault}.", errors=[FieldProblem(f"{place}/version", fault)])
        checked.append({"name": card.name, "version": card.version, "parameters": parameters})
    return checked


def _refuse_learning(catalog: Catalog, card: AnalysisCard, name: str, merge: Mapping[str, JsonValue]) -> None:
    """Refuse a merge that would learn, an analysis giving it no data, or whose coefficients are of other merges.

    Raises: InvalidParameters.
    """
    method, given = catalog.method(str(merge["method"])), merge["parameters"]
    parameters = given if isinstance(given, dict) else {}
    place = f"/parameters/{name}"
    if method.learned is not None and parameters.get(method.learned) is not None and card.merges_subsets:
        fault = (
            f"`{method.learned}` hold a number for each model of the one merge that learned them, and {card.name} "
            "merges some of the models at a time; name a method that does not learn"
        )
        place = f"{place}/parameters/{method.learned}"
    elif method.learns(parameters):
        fault = f"{method.name} learns from data, and an analysis has only weights; {_way_out(card, method.learned)}"
        place = f"{place}/method"
    else:
        return
    raise InvalidParameters(f"{card.name}: {fault}.", errors=[FieldProblem(place, fault)])


def _way_out(card: AnalysisCard, learned: str | None) -> str:
    ways = ["name a method that does not learn"]
    if card.takes_merged:
        ways.insert(0, "name its result as `merged`")
    if learned is not None and not card.merges_subsets:
        ways.insert(0, f"give it `{learned}`, as an earlier merge learned them")
    return ", or ".join(ways)


def _merged_faults(card: AnalysisCard, parameters: Mapping[str, JsonValue]) -> list[FieldProblem]:
    if not card.takes_merged:
        return [FieldProblem("/merged", f"{card.name} makes every merge that it looks at; leave `merged` out")]
    return [
        FieldProblem(f"/parameters/{name}", "says how to merge, and `merged` names what was merged; leave one out")
        for name in card.nested
        if name in parameters
    ]


def _pinned(manifest: Manifest) -> PinnedCheckpoint:
    return PinnedCheckpoint(content_digest=manifest.digest, weights_digest=manifest.weights_digest)


def _model_faults(card: AnalysisCard, n_models: int) -> list[FieldProblem]:
    most = card.max_models
    if n_models >= card.min_models and (most is None or n_models <= most):
        return []
    wanted = f"exactly {most}" if most == card.min_models else f"{card.min_models} or more"
    return [FieldProblem("/models", f"{card.name} takes {wanted} models, found {n_models}")]


def _task_faults(card: AnalysisCard, n_models: int, n_tasks: int) -> list[FieldProblem]:
    fits, wanted = {
        "none": (n_tasks == 0, "no tasks: it looks at the weights alone"),
        "any": (n_tasks >= 1, "at least one task"),
        "one_per_model": (n_tasks == n_models, f"one task per model, in the models' order: {n_models}"),
        "target_and_controls": (n_tasks >= 2, "at least two tasks: the one to forget, then those to be kept"),
    }[card.tasks]
    return [] if fits else [FieldProblem("/tasks", f"{card.name} takes {wanted}; found {n_tasks}")]
