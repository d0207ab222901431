"""What happens to every request before routing: its id, its trace, the hosts we answer to, and its JSON body.

A JSON body is read once, bounded, and refused here for what Python's parser would let through: NaN and Infinity,
duplicate names, lone surrogates, NUL, numbers and nesting without bounds.
"""

import json
import re
import secrets
import uuid
from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import problems
from app.domain.errors import AmalgamError, BadRequest, FieldProblem, Invalid, TooLarge
from app.domain.hosts import host_of, is_answered

MAX_DEPTH = 64
BODY_STATE = "json_body"  # the parsed body, for the fingerprint of an Idempotency-Key
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
# W3C Trace Context: version (not ff), trace, span (neither all zeros), flags.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_UPLOADED_FILE = re.compile(r"/v1/checkpoints/uploads/[^/]+/files/.+")


class RequestContext:
    """Accepts or makes the request id and the trace, echoes them, and binds them to the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        request_id = request.headers.get("x-request-id", "")
        if _REQUEST_ID.fullmatch(request_id) is None:
            request_id = uuid.uuid4().hex
        traceparent = request.headers.get("traceparent", "")
        if _TRACEPARENT.fullmatch(traceparent) is None:
            traceparent = f"00-{uuid.uuid4().hex}-{secrets.token_hex(8)}-00"
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["traceparent"] = traceparent

        async def send_with_ids(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["Traceparent"] = traceparent
                headers.setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id, traceparent=traceparent):
            await self.app(scope, receive, send_with_ids)


class Intake:
    """Refuses requests for other hosts, addresses with NUL, and bodies that are too large or not strict JSON."""

    def __init__(self, app: ASGIApp, *, allowed_hosts: Sequence[str], body_limit_bytes: int) -> None:
        self.app = app
        self.allowed_hosts = tuple(allowed_hosts)
        self.body_limit_bytes = body_limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            self._check_host(request)
            _check_address(request)
            if _UPLOADED_FILE.fullmatch(scope["path"]) is None:
                body = await _read(request, self.body_limit_bytes)
                if body and _is_json(request):
                    scope.setdefault("state", {})[BODY_STATE] = parse_json(body)
                receive = _again(body, receive)
        except AmalgamError as error:
            await problems.answer(error, request, {"Connection": "close"})(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _check_host(self, request: Request) -> None:
        host = host_of(request.headers.get("host", ""))
        if is_answered(host, self.allowed_hosts):
            return
        raise BadRequest(
            f"The Host header names {host!r}, which this service does not answer to. Add it to AMALGAM_ALLOWED_HOSTS."
        )


def parse_json(body: bytes) -> Any:
    """Return a JSON document.

    Raises: BadRequest for text that is not strict JSON; Invalid for NaN, an infinite number, NUL or half a character.
    """
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise BadRequest(f"The body is not UTF-8: byte {error.start} does not belong. Send JSON in UTF-8.") from None
    except json.JSONDecodeError as error:
        message = f"The body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        raise BadRequest(f"{message} Send one JSON document.") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise BadRequest(f"The body holds a number that cannot be read: {str(error)[:80]}.") from None
    _check_values(document, "")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise BadRequest(f"The body has the name {double[:80]!r} twice in one object. Say it once.")
    return document


def _refuse_constant(constant: str) -> float:
    return float(constant)  # found again, with its pointer, by _check_values


def _check_values(value: Any, pointer: str, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise _too_deep()
    match value:
        case float() if value != value or value in (float("inf"), float("-inf")):
            raise _refused(pointer, f"must be a finite number, found {value}")
        case str():
            _check_text(value, pointer)
        case dict():
            for name, item in value.items():
                _check_text(name, pointer)
                _check_values(item, f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}", depth + 1)
        case list():
            for index, item in enumerate(value):
                _check_values(item, f"{pointer}/{index}", depth + 1)
        case _:
            return


def _too_deep() -> BadRequest:
    return BadRequest(f"The body nests deeper than {MAX_DEPTH} levels. Send a flatter JSON document.")


def _check_text(text: str, pointer: str) -> None:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise _refused(pointer, "must be text without NUL and without lone surrogates")


def _refused(pointer: str, message: str) -> Invalid:
    return Invalid(f"{pointer or '/'}: {message}.", errors=[FieldProblem(pointer or "/", message)])


def _check_address(request: Request) -> None:
    query: bytes = request.scope.get("query_string", b"")
    if "\0" in request.scope["path"] or b"%00" in query or b"\0" in query:
        raise BadRequest("The address contains NUL (%00), which no name here can contain. Leave it out.")


async def _read(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"The body is larger than {limit} bytes. Send weights as an upload (POST /v1/checkpoints/uploads) or by"
        " URI, and less than this everywhere else."
    )


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a receive that gives the body once more, and then whatever the client still says (that it left)."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
