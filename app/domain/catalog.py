"""The cards of methods and evaluators, and the check of a recipe against them; no method's code is needed.

`catalog.json` is generated from the worker's method files (`make catalog`), committed, and checked for drift.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from math import fsum
from pathlib import Path
from typing import Any, Literal

import jsonschema
from pydantic import Field, JsonValue

from app.domain.adapters import AdapterSpace
from app.domain.checkpoints import Value
from app.domain.errors import (
    EvaluatorNotFound,
    FieldProblem,
    Invalid,
    InvalidParameters,
    MethodNotFound,
    UnknownMethod,
    UnknownTaskKind,
    UnknownTechnique,
    near_match,
)

CATALOG_FORMAT_VERSION = 1
CATALOG_PATH = Path(__file__).parent / "catalog.json"
MAX_MODELS = 256
DEFAULT_FOR_ONE_MODEL = "x-default-for-one-model"  # keyword in a parameters schema, beside "default"

Granularity = Literal["element", "row", "tensor", "matrix", "model"]


class MethodCard(Value):
    """What a caller and the pipeline need to know about a merge method."""

    name: str
    version: int  # raised whenever the method gives other bytes for the same input
    title: str
    summary: str
    source: str  # paper or project, with its number
    aliases: tuple[str, ...] = ()
    base_model: Literal["required", "optional", "unused"]
    min_models: int = Field(ge=1)
    max_models: int | None = None
    weights: Literal["any", "non_negative", "unused"]  # what models[].weight may be
    data: Literal["none", "unlabelled", "labelled", "gram", "fisher"] = "none"
    granularity: Granularity  # the smallest piece the method may be given
    order_matters: bool = False
    is_random: bool = False
    produces: Literal["dense", "multitask", "adapter"] = "dense"
    accepts_adapters: bool = True
    accepts_dense: bool = True  # False: its models are adapters
    adapter_spaces: tuple[AdapterSpace, ...] = (
        "delta",
        "factors",
    )  # where it merges adapters; the first is the default
    parameters: dict[str, Any]  # JSON Schema (draft 2020-12) of the parameters object
    neutral_parameters: dict[str, JsonValue] | None = None  # one model in, that model out (law T1); None: no such law
    is_scale_equivariant: bool = True  # law T8
    statistic_passes: int = Field(default=0, ge=0)  # passes over the inputs before the merge, at most


class EvaluatorCard(Value):
    """What a caller needs to know about an evaluator; its name is the `kind` of the tasks it measures."""

    name: str
    version: int
    title: str
    summary: str
    source: str
    heads: tuple[str, ...]
    metrics: tuple[str, ...]
    parameters: dict[str, Any]  # JSON Schema of a task's `preprocessing`


class FinetunerCard(Value):
    """What a caller needs to know about a fine-tuning technique."""

    name: str
    version: int  # raised whenever the technique gives other bytes for the same input
    title: str
    summary: str
    source: str
    produces: Literal["dense", "adapter"]
    parameters: dict[str, Any]  # JSON Schema of the parameters object


class Catalog(Value):
    """All cards, sorted by name."""

    format_version: int = CATALOG_FORMAT_VERSION
    methods: tuple[MethodCard, ...]
    evaluators: tuple[EvaluatorCard, ...]
    finetuners: tuple[FinetunerCard, ...] = ()

    def method(self, name: str) -> MethodCard:
        """Return a method's card by name or alias.

        Raises: MethodNotFound with the nearest name.
        """
        for card in self.methods:
            if name == card.name or name in card.aliases:
                return card
        names = [known for card in self.methods for known in (card.name, *card.aliases)]
        raise MethodNotFound(_unknown("merge method", name, names))

    def evaluator(self, name: str) -> EvaluatorCard:
        """Return an evaluator's card.

        Raises: EvaluatorNotFound with the nearest name.
        """
        for card in self.evaluators:
            if name == card.name:
                return card
        raise EvaluatorNotFound(_unknown("evaluator", name, [card.name for card in self.evaluators]))

    def check(
        self,
        method: str,
        parameters: Mapping[str, JsonValue],
        *,
        has_base_model: bool,
        weights: Sequence[float],
        model_parameters: Sequence[Mapping[str, JsonValue]] = (),
    ) -> tuple[MethodCard, dict[str, JsonValue]]:
        """Return the card and the effective parameters (defaults filled in) of a merge request.

        Raises: UnknownMethod; InvalidParameters naming every fault at once; Invalid for a wrong number of models,
            a missing base model, or a weight that the method cannot use.
        """
        try:
            card = self.method(method)
        except MethodNotFound as error:
            names = [known for card in self.methods for known in (card.name, *card.aliases)]
            problem = FieldProblem("/method", error.detail, near_match(method, names))
            raise UnknownMethod(error.detail, errors=[problem]) from None
        faults = _structural_faults(card, has_base_model=has_base_model, weights=weights)
        faults += _per_model_faults(card, model_parameters)
        if faults:
            raise Invalid(_summary(card.name, faults), errors=faults)
        faults = schema_faults(card.parameters, dict(parameters), pointer="/parameters")
        if faults:
            raise InvalidParameters(_summary(card.name, faults), errors=faults)
        effective = fill_defaults(card.parameters, parameters, n_models=len(weights))
        faults = _weight_sum_faults(card, effective, weights)
        if faults:
            raise Invalid(_summary(card.name, faults), errors=faults)
        return card, effective

    def check_task(
        self, kind: str, *, head: str, metric: str, preprocessing: Mapping[str, JsonValue]
    ) -> tuple[EvaluatorCard, dict[str, JsonValue]]:
        """Return the evaluator's card and the effective preprocessing (defaults filled in) of a task.

        Raises: UnknownTaskKind with the nearest name; Invalid for a head or a metric that the evaluator has not;
            InvalidParameters naming every fault of the preprocessing at once.
        """
        known = [card.name for card in self.evaluators]
        if kind not in known:
            detail = _unknown("evaluator for tasks of kind", kind, known)
            raise UnknownTaskKind(detail, errors=[FieldProblem("/kind", detail, near_match(kind, known))])
        card = self.evaluator(kind)
        faults = _choice_faults("/head/kind", "head", head, card.heads)
        faults += _choice_faults("/metric", "metric", metric, card.metrics)
        if faults:
            raise Invalid(f"{card.name}: {faults[0].message}", errors=faults)
        faults = schema_faults(card.parameters, dict(preprocessing), pointer="/preprocessing")
        if faults:
            raise InvalidParameters(_summary(card.name, faults), errors=faults)
        return card, fill_defaults(card.parameters, preprocessing)

    def finetuner(self, name: str) -> FinetunerCard:
        """Return a fine-tuning technique's card.

        Raises: UnknownTechnique with the nearest name.
        """
        cards = {card.name: card for card in self.finetuners}
        if name not in cards:
            detail = _unknown("fine-tuning technique", name, list(cards))
            raise UnknownTechnique(detail, errors=[FieldProblem("/technique", detail, near_match(name, cards))])
        return cards[name]

    def check_finetune(
        self, technique: str, parameters: Mapping[str, JsonValue]
    ) -> tuple[FinetunerCard, dict[str, JsonValue]]:
        """Return the card and the effective parameters (defaults filled in) of a fine-tuning request.

        Raises: UnknownTechnique with the nearest name; InvalidParameters naming every fault at once.
        """
        card = self.finetuner(technique)
        faults = schema_faults(card.parameters, dict(parameters), pointer="/parameters")
        if faults:
            raise InvalidParameters(_summary(card.name, faults), errors=faults)
        return card, fill_defaults(card.parameters, parameters)


@cache
def load_catalog() -> Catalog:
    """Return the committed catalog."""
    return Catalog.model_validate(json.loads(CATALOG_PATH.read_text(encoding="utf-8")))


def fill_defaults(
    schema: Mapping[str, Any], values: Mapping[str, JsonValue], *, n_models: int | None = None
) -> dict[str, JsonValue]:
    """Return the values with the schema's defaults filled in, sorted by name; equal numbers in one form (1 is 1.0).

    A parameter whose best default is another one for a single model says so as `x-default-for-one-model`.
    """
    defaults: dict[str, JsonValue] = {}
    for name, rule in schema.get("properties", {}).items():
        if n_models == 1 and DEFAULT_FOR_ONE_MODEL in rule:
            defaults[name] = rule[DEFAULT_FOR_ONE_MODEL]
        elif "default" in rule:
            defaults[name] = rule["default"]
    merged = {**defaults, **values}
    rules = schema.get("properties", {})
    return {name: _one_form(rules.get(name, {}), merged[name]) for name in sorted(merged)}


def schema_faults(schema: Mapping[str, Any], document: object, *, pointer: str) -> list[FieldProblem]:
    """Return every fault of a document under a JSON Schema, unknown names with their near matches."""
    validator = jsonschema.Draft202012Validator(schema)
    faults = _number_faults(document, pointer)
    if faults:
        return faults
    for error in sorted(validator.iter_errors(document), key=lambda error: [str(step) for step in error.path]):
        where = "".join(f"/{step}" for step in error.path)
        if error.validator == "additionalProperties":
            known = list(error.schema.get("properties", {}))
            unknown = [name for name in error.instance if name not in known]
            faults += [
                FieldProblem(
                    f"{pointer}{where}/{name}",
                    f"unknown parameter {name!r}; known: {', '.join(known) or 'none'}",
                    near_match(name, known),
                )
                for name in unknown
            ]
        else:
            faults.append(FieldProblem(f"{pointer}{where}", _describe(error)))
    return faults


def _number_faults(document: object, pointer: str) -> list[FieldProblem]:
    """Return the integers that no 64-bit number holds; a JSON text may have any number of digits."""
    if isinstance(document, Mapping):
        return [fault for name, value in document.items() for fault in _number_faults(value, f"{pointer}/{name}")]
    if isinstance(document, list):
        return [fault for at, value in enumerate(document) for fault in _number_faults(value, f"{pointer}/{at}")]
    if isinstance(document, int) and not -(2**63) <= document < 2**63:
        return [FieldProblem(pointer, "the number is out of range; expected at most 64 bits")]
    return []


def _one_form(rule: Mapping[str, Any], value: JsonValue) -> JsonValue:
    """Return the value as its type has it, so that equal requests have equal digests: 1 and 1.0 are one number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    kind = rule.get("type")
    if is_number and kind == "number":
        return float(value)  # type: ignore[arg-type]  # it is a number
    if is_number and kind == "integer":
        return int(value)  # type: ignore[arg-type]  # JSON Schema takes 3.0 for an integer
    return value


def _describe(error: jsonschema.ValidationError) -> str:
    rule = error.schema if isinstance(error.schema, Mapping) else {}
    bounds = [
        f"{word} {rule[key]}"
        for key, word in (
            ("exclusiveMinimum", ">"),
            ("minimum", ">="),
            ("exclusiveMaximum", "<"),
            ("maximum", "<="),
        )
        if key in rule
    ]
    expected = f"; expected a number {' and '.join(bounds)}" if bounds else ""
    return f"{error.message}{expected}"


def _structural_faults(card: MethodCard, *, has_base_model: bool, weights: Sequence[float]) -> list[FieldProblem]:
    faults: list[FieldProblem] = []
    if card.base_model == "required" and not has_base_model:
        faults.append(FieldProblem("/base_model", f"{card.name} needs a base_model; name the pre-trained checkpoint"))
    most = min(card.max_models or MAX_MODELS, MAX_MODELS)
    if not card.min_models <= len(weights) <= most:
        wanted = f"exactly {most}" if most == card.min_models else f"{card.min_models} to {most}"
        faults.append(FieldProblem("/models", f"{card.name} takes {wanted} models, found {len(weights)}"))
    for index, weight in enumerate(weights):
        pointer = f"/models/{index}/weight"
        if card.weights == "unused" and weight != 1.0:
            faults.append(FieldProblem(pointer, f"{card.name} uses no weights; leave it out (found {weight})"))
        if card.weights == "non_negative" and weight < 0:
            faults.append(FieldProblem(pointer, f"{card.name} needs weights >= 0, found {weight}"))
    return faults


def _weight_sum_faults(
    card: MethodCard, parameters: Mapping[str, JsonValue], weights: Sequence[float]
) -> list[FieldProblem]:
    if not parameters.get("normalize") or fsum(weights) != 0:
        return []
    advice = "change the weights, or set /parameters/normalize to false to sum without dividing"
    return [FieldProblem("/models", f"{card.name} divides by the sum of the weights, which is 0; {advice}")]


def _per_model_faults(card: MethodCard, model_parameters: Sequence[Mapping[str, JsonValue]]) -> list[FieldProblem]:
    return [
        FieldProblem(
            f"/models/{index}/parameters/{name}",
            f"{card.name} takes no parameters per model; use /parameters for all models, or weight",
        )
        for index, values in enumerate(model_parameters)
        for name in values
    ]


def _choice_faults(pointer: str, what: str, found: str, known: Sequence[str]) -> list[FieldProblem]:
    if found in known:
        return []
    message = f"there is no {what} {found!r} here; expected one of: {', '.join(known)}"
    return [FieldProblem(pointer, message, near_match(found, known))]


def _summary(name: str, faults: Sequence[FieldProblem]) -> str:
    return f"{name}: {faults[0].message}" + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else "")


def _unknown(what: str, name: str, known: Sequence[str]) -> str:
    match = near_match(name, known)
    hint = f" Did you mean {match!r}?" if match else ""
    return f"There is no {what} {name!r}.{hint} Known: {', '.join(sorted(known)) or 'none'}."
