"""Domain errors as RFC 9457 problems; the only place that knows status codes.

Also the `responses=` of a route: every error it can answer, documented with an example per code.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, JsonValue

from app.domain.errors import (
    AmalgamError,
    BadRequest,
    Conflict,
    InputChanged,
    Invalid,
    MethodNotAllowed,
    NotAcceptable,
    NotFinite,
    NotFound,
    OutOfDisk,
    PreconditionFailed,
    PreconditionRequired,
    RangeNotSatisfiable,
    TooLarge,
    Unavailable,
    UnsupportedMediaType,
    all_errors,
)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 2

# The nearest class in an error's family decides.
STATUSES: dict[type[AmalgamError], int] = {
    AmalgamError: 500,
    BadRequest: 400,
    NotFound: 404,
    MethodNotAllowed: 405,
    NotAcceptable: 406,
    Conflict: 409,
    InputChanged: 409,
    PreconditionFailed: 412,
    TooLarge: 413,
    UnsupportedMediaType: 415,
    RangeNotSatisfiable: 416,
    Invalid: 422,
    NotFinite: 422,
    PreconditionRequired: 428,
    Unavailable: 503,
    OutOfDisk: 507,
}


class FieldProblemBody(BaseModel):
    """One fault in the input."""

    pointer: str = Field(description="JSON Pointer into the body; /query/…, /path/… and /header/… for parameters.")
    message: str
    did_you_mean: str | None = None


class Problem(BaseModel):
    """What went wrong, as RFC 9457 has it."""

    type: str = Field(description="Stable address of the kind of problem.")
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable name of the kind of problem.")
    request_id: str | None = None
    errors: list[FieldProblemBody] | None = None
    retryable: bool | None = None


def status_of(kind: type[AmalgamError]) -> int:
    """Return the HTTP status of a class of errors."""
    return next(STATUSES[ancestor] for ancestor in kind.__mro__ if ancestor in STATUSES)


def complete(stored: Mapping[str, Any]) -> dict[str, JsonValue]:
    """Return a problem kept with a job or a checkpoint in the form of an error: with its type and status."""
    statuses = {kind.code: status_of(kind) for kind in all_errors()}
    code = str(stored.get("code", AmalgamError.code))
    return {"type": f"/problems/{code}", "status": statuses.get(code, 500), **stored}


def answer(error: AmalgamError, request: Request, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the response to an error."""
    body = complete(error.to_json()) | {"request_id": request.scope.get("state", {}).get("request_id")}
    status = status_of(type(error))
    extra = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status == 503 else {}
    return JSONResponse(body, status_code=status, media_type=MEDIA_TYPE, headers={**extra, **(headers or {})})


def problems(*kinds: type[AmalgamError]) -> dict[int | str, dict[str, Any]]:
    """Return a route's `responses=`: the errors it can answer beside those that every route can."""
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        add_response(responses, kind)
    return responses


def add_response(responses: dict[int | str, dict[str, Any]], kind: type[AmalgamError], *, key: type = int) -> None:
    """Add one error to a table of responses, beside others of the same status. `key`: the type of the table's keys."""
    status = status_of(kind)
    response = responses.setdefault(key(status), {"description": kind.title, "content": {}})
    if kind.title not in response["description"]:
        response["description"] += f"; {kind.title}"
    content = response["content"].setdefault(
        MEDIA_TYPE, {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}
    )
    content["examples"][kind.code] = {"summary": kind.title, "value": _example(kind)}


def _example(kind: type[AmalgamError]) -> dict[str, JsonValue]:
    return {
        "type": f"/problems/{kind.code}",
        "title": kind.title,
        "status": status_of(kind),
        "detail": (kind.__doc__ or kind.title).splitlines()[0],
        "code": kind.code,
        "request_id": "0194f9e2b7f87c7cb0d4a8f4f0e6a1c2",
        "retryable": kind.retryable,
    }
