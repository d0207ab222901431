"""Checks values against the JSON Schema of a card's parameters, and fills in what was left out."""

from collections.abc import Mapping
from typing import Any

import jsonschema
from pydantic import JsonValue

from app.domain.errors import FieldProblem, near_match

DEFAULT_FOR_ONE_MODEL = "x-default-for-one-model"  # keyword in a parameters schema, beside "default"
MAX_GRADIENT = 1000


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


def is_gradient(schema: Mapping[str, Any], name: str, value: object) -> bool:
    """Tell whether a value is a list where the schema has one number: a gradient, interpolated over the depth."""
    return isinstance(value, list) and number_of(schema.get("properties", {}).get(name, {})) is not None


def number_of(rule: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the schema of the number that a parameter is, or may be beside null; None: it is something else."""
    options = rule.get("anyOf", [rule])
    numbers = [option for option in options if option.get("type") == "number"]
    is_number = len(numbers) == 1 and all(option.get("type") in ("number", "null") for option in options)
    return numbers[0] if is_number else None


def with_gradients(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a method's parameters as a request may hold them: a number may also be a gradient."""
    properties = {
        name: rule if (number := number_of(rule)) is None else _or_gradient(rule, number)
        for name, rule in schema.get("properties", {}).items()
    }
    return {**schema, "properties": properties}


def _or_gradient(rule: Mapping[str, Any], number: Mapping[str, Any]) -> dict[str, Any]:
    about = {key: rule[key] for key in ("title", "description", "default") if key in rule}
    plain = {key: value for key, value in number.items() if key not in about}
    beside = [option for option in rule.get("anyOf", []) if option != number]
    gradient = {"type": "array", "items": plain, "minItems": 2, "maxItems": MAX_GRADIENT}
    return {**about, "anyOf": [plain, *beside, gradient]}


def parameter_faults(schema: Mapping[str, Any], values: Mapping[str, JsonValue], *, pointer: str) -> list[FieldProblem]:
    """Return every fault of a method's parameters, in which a number may also be a gradient: a list of numbers."""
    plain = {name: value for name, value in values.items() if not is_gradient(schema, name, value)}
    faults = schema_faults(schema, plain, pointer=pointer)
    for name in values.keys() - plain.keys():
        gradient = values[name]
        steps = gradient if isinstance(gradient, list) else []
        if not 2 <= len(steps) <= MAX_GRADIENT:
            found = f"found a list of {len(steps)}; expected a number, or 2 to {MAX_GRADIENT} to interpolate over depth"
            faults.append(FieldProblem(f"{pointer}/{name}", found))
            continue
        number = {"properties": {name: number_of(schema["properties"][name])}}
        for at, value in enumerate(steps):
            found_here = schema_faults(number, {name: value}, pointer=pointer)
            faults += [FieldProblem(f"{fault.pointer}/{at}", fault.message, fault.did_you_mean) for fault in found_here]
    return sorted(faults, key=lambda fault: fault.pointer)


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
    takes_number = number_of(rule) is not None
    if isinstance(value, list) and takes_number:  # a gradient
        return [_one_form(rule, step) for step in value]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and takes_number:
        return float(value)  # type: ignore[arg-type]  # it is a number
    if is_number and rule.get("type") == "integer":
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
