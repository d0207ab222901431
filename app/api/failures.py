"""What is answered when a request fails: every exception becomes a problem, and a replay the first answer."""

import re
from collections.abc import Mapping

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import compile_path

from app.api import problems, validation
from app.domain.errors import (
    AmalgamError,
    BadRequest,
    MethodNotAllowed,
    NotFound,
)
from app.services.idempotency import Replayed

ANSWERS_HEAD = {"x-answers-head": True}  # `openapi_extra` of a GET beside which HEAD gives the headers alone

log = structlog.get_logger(__name__)


def install(app: FastAPI) -> None:
    """Let an app answer its failures as problems. Call it when all routes are there."""
    allowed = _Allowed(app)

    def on_http_exception(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        if status == 404:
            return problems.answer(NotFound(f"There is no path {request.url.path}. See /docs."), request)
        if status == 405:
            verbs = ", ".join(allowed.verbs(request.url.path))
            detail = f"{request.url.path} does not answer {request.method}. It answers {verbs}."
            return problems.answer(MethodNotAllowed(detail), request, {"Allow": verbs})
        if 400 <= status < 500:
            return problems.answer(BadRequest(f"{getattr(error, 'detail', error)}."), request)
        return on_fault(request, error)

    app.exception_handler(HTTPException)(on_http_exception)
    app.exception_handler(RequestValidationError)(on_validation_error)
    app.exception_handler(AmalgamError)(on_problem)
    app.exception_handler(Replayed)(on_replay)
    app.exception_handler(Exception)(on_fault)


def on_problem(request: Request, error: Exception) -> Response:
    """Answer one of our errors."""
    if not isinstance(error, AmalgamError):
        return on_fault(request, error)
    if problems.status_of(type(error)) >= 500:
        cause = None if error.__cause__ is None else repr(error.__cause__)
        log.warning("request_failed", code=error.code, detail=error.detail, path=request.url.path, cause=cause)
    return problems.answer(error, request)


def on_validation_error(request: Request, error: Exception) -> Response:
    """Answer what FastAPI found invalid."""
    if not isinstance(error, RequestValidationError):
        return on_fault(request, error)
    return problems.answer(validation.translate(error, request), request)


def on_replay(request: Request, error: Exception) -> Response:
    """Give the first answer again."""
    if not isinstance(error, Replayed):
        return on_fault(request, error)
    headers = {"Idempotent-Replayed": "true"}
    if error.answer.location is not None:
        headers["Location"] = error.answer.location
    return JSONResponse(error.answer.body, status_code=error.answer.status, headers=headers)


def on_fault(request: Request, error: Exception) -> Response:
    """Answer a fault of ours without a word of its insides; the log has them."""
    log.error("request_crashed", path=request.url.path, method=request.method, exc_info=error)
    request_id = request.scope.get("state", {}).get("request_id")
    detail = f"The fault is ours, and the service's log tells it under request id {request_id}. Nothing was changed."
    return problems.answer(AmalgamError(detail), request, {"X-Request-ID": str(request_id)})


class _Allowed:
    """The verbs of a path over all its routes; the router's own answer names those of the first route only."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.table: list[tuple[re.Pattern[str], set[str]]] | None = None

    def verbs(self, path: str) -> list[str]:
        """Return the verbs that a path answers, sorted."""
        if self.table is None:
            paths = self.app.openapi()["paths"]
            self.table = [(compile_path(template)[0], _verbs_of(operations)) for template, operations in paths.items()]
        return sorted({verb for pattern, verbs in self.table if pattern.fullmatch(path) for verb in verbs})


def _verbs_of(operations: Mapping[str, Mapping[str, object]]) -> set[str]:
    has_head = any(ANSWERS_HEAD.items() <= operation.items() for operation in operations.values())
    return {verb.upper() for verb in operations} | ({"HEAD"} if has_head else set())
