"""What FastAPI's validation found, in our words: pointers, ranges, and near matches for unknown fields.

The near match comes from the JSON Schema of the route's own body, walked along the place of the fault.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter

from app.domain.errors import (
    AmalgamError,
    BadRequest,
    FieldProblem,
    Invalid,
    UnsupportedMediaType,
    near_match,
)

MAX_FAULTS = 50

Schema = Mapping[str, Any]


def translate(error: RequestValidationError, request: Request) -> AmalgamError:
    """Return the problem of a request that FastAPI refused."""
    faults = error.errors()
    if any(fault["type"] == "json_invalid" for fault in faults):
        return BadRequest("The body is not valid JSON. Send one JSON document in UTF-8.")
    if isinstance(error.body, bytes):
        read = getattr(request.scope.get("route"), "media_types", ("application/json",))
        return unsupported_media_type(request.headers.get("content-type"), read)
    schema = _body_schema(request)
    problems = _without_echoes(list(dict.fromkeys(_describe(fault, schema) for fault in faults)))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Invalid(f"{problems[0].pointer}: {problems[0].message}{more}", errors=problems[:MAX_FAULTS])


def unsupported_media_type(found: str | None, read: Sequence[str] = ("application/json",)) -> UnsupportedMediaType:
    """Return the problem of a body that is not announced as one of what the path reads."""
    what = f"The body has Content-Type {found!r}" if found else "The body has no Content-Type"
    known = " and ".join(read)
    return UnsupportedMediaType(f"{what}; this path reads {known}. Send JSON and say so in Content-Type.")


def _without_echoes(problems: list[FieldProblem]) -> list[FieldProblem]:
    """Leave out "this is no string" where another arm of the union found a fault deeper in the same value."""
    return [
        problem
        for problem in problems
        if not any(other.pointer.startswith(f"{problem.pointer}/") for other in problems)
    ]


def _describe(fault: Mapping[str, Any], schema: Schema | None) -> FieldProblem:
    source, *steps = fault["loc"]
    if source != "body" or schema is None:
        return FieldProblem("/" + "/".join(_escape(step) for step in fault["loc"]), _message(fault))
    is_unknown = fault["type"] == "extra_forbidden"
    path, known = _walk(schema, steps, keep_last=is_unknown)
    pointer = "".join(f"/{_escape(step)}" for step in path)
    if not is_unknown:
        return FieldProblem(pointer or "/", _message(fault))
    name = str(steps[-1])
    return FieldProblem(
        pointer, f"unknown field {name!r}; known here: {', '.join(known) or 'none'}", near_match(name, known)
    )


def _message(fault: Mapping[str, Any]) -> str:
    found = fault.get("input")
    message = str(fault["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if fault["type"] == "missing" or isinstance(found, dict | list | tuple | BaseModel):
        return message
    return f"{message}, found {_short(found)}"


def _short(found: object) -> str:
    text = repr(found)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _escape(step: object) -> str:
    return str(step).replace("~", "~0").replace("/", "~1")


def _body_schema(request: Request) -> Schema | None:
    route = request.scope.get("route")
    body = getattr(route, "body_field", None) if isinstance(route, APIRoute) else None
    return None if body is None else TypeAdapter(body.field_info.annotation).json_schema()


def _walk(schema: Schema, steps: Sequence[str | int], *, keep_last: bool) -> tuple[list[str | int], list[str]]:
    """Return the path without pydantic's names for the arms of a union, and the fields known where the last step is.

    `keep_last`: the last step is the caller's own word, whether the schema knows it or not.
    """
    definitions = schema.get("$defs", {})
    places = list(_arms(schema, definitions))
    path: list[str | int] = []
    known: list[str] = []
    for index, step in enumerate(steps):
        below = [found for place in places for found in _below(place, step)]
        known = sorted({name for place in places for name in place.get("properties", {})})
        if below:
            places = [arm for place in below for arm in _arms(place, definitions)]
        elif not (keep_last and index == len(steps) - 1):
            continue  # the name of an arm of a union
        path.append(step)
    return path, known


def _below(place: Schema, step: str | int) -> Iterable[Schema]:
    if isinstance(step, int):
        return [place["items"]] if isinstance(place.get("items"), dict) else []
    if step in place.get("properties", {}):
        return [place["properties"][step]]
    values = place.get("additionalProperties")
    return [values] if isinstance(values, dict) else []


def _arms(schema: Schema, definitions: Schema) -> Iterable[Schema]:
    if "$ref" in schema:
        yield from _arms(definitions.get(schema["$ref"].rsplit("/", 1)[-1], {}), definitions)
    for arm in [*schema.get("anyOf", ()), *schema.get("oneOf", ())]:
        yield from _arms(arm, definitions)
    if "properties" in schema or "items" in schema or "additionalProperties" in schema:
        yield schema
