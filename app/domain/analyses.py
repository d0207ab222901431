"""The check of an analysis request against its kind's card: how many models and tasks, which parameters."""

from collections.abc import Mapping

from pydantic import JsonValue

from app.domain.catalog import AnalysisCard, Catalog
from app.domain.errors import FieldProblem, Invalid, InvalidParameters
from app.domain.parameter_checks import fill_defaults, schema_faults


def check_analysis(
    catalog: Catalog, kind: str, parameters: Mapping[str, JsonValue], *, n_models: int, n_tasks: int
) -> tuple[AnalysisCard, dict[str, JsonValue]]:
    """Return the card and the effective parameters (defaults filled in) of an analysis request.

    Raises: UnknownAnalysis with the nearest name; Invalid for a number of models or tasks that the kind cannot use;
        InvalidParameters naming every fault at once, and for a merge that learns; for a merge method among the
        parameters as Catalog.check.
    """
    card = catalog.analysis(kind)
    faults = [*_model_faults(card, n_models), *_task_faults(card, n_models, n_tasks)]
    if faults:
        raise Invalid(f"{card.name}: {faults[0].message}.", errors=faults)
    faults = schema_faults(card.parameters, dict(parameters), pointer="/parameters")
    if faults:
        raise InvalidParameters(f"{card.name}: {faults[0].message}", errors=faults)
    effective = fill_defaults(card.parameters, parameters)
    for name in card.nested:
        merge = catalog.check_nested(name, effective[name], has_base_model=True, weights=[1.0] * min(n_models, 2))
        _refuse_learning(catalog, card, name, merge)
        effective[name] = merge
    return card, effective


def _refuse_learning(catalog: Catalog, card: AnalysisCard, name: str, merge: Mapping[str, JsonValue]) -> None:
    """Refuse a merge that would learn: an analysis gives it no data. Raises: InvalidParameters."""
    method, parameters = catalog.method(str(merge["method"])), merge["parameters"]
    if not method.learns(parameters if isinstance(parameters, dict) else {}):
        return
    given = f"give it `{method.learned}`, as an earlier merge learned them, or name" if method.learned else "name"
    fault = f"{method.name} learns from data, and an analysis has only weights; {given} a method that does not learn"
    raise InvalidParameters(f"{card.name}: {fault}.", errors=[FieldProblem(f"/parameters/{name}/method", fault)])


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
