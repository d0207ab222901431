"""Routes that also read a merge as mergekit writes it: YAML in, the same request behind it, faults with their lines.

The document becomes the JSON body that says the same, before FastAPI looks at it; what is found wrong with that body
later is pointed at in the document.
"""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders

from app.api import validation
from app.api.middleware import BODY_STATE
from app.domain.errors import AmalgamError
from app.domain.mergekit.reading import Reading, read_merge

MEDIA_TYPE = "application/yaml"
MEDIA_TYPES = (MEDIA_TYPE, "application/x-yaml", "text/yaml", "text/x-yaml")


class MergeRoute(APIRoute):
    """A route whose body is a merge, as JSON or as mergekit's YAML."""

    media_types = ("application/json", MEDIA_TYPE)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler behind the translation."""
        handle = super().get_route_handler()

        async def handle_either(request: Request) -> Response:
            if not _is_yaml(request):
                return await handle(request)
            reading = await run_in_threadpool(read_merge, await request.body())
            translated = _with_body(request, reading)
            try:
                return await handle(translated)
            except RequestValidationError as error:
                raise _placed(validation.translate(error, translated), reading) from None
            except AmalgamError as error:
                raise _placed(error, reading) from error

        return handle_either


def _is_yaml(request: Request) -> bool:
    return request.headers.get("content-type", "").split(";")[0].strip().lower() in MEDIA_TYPES


def _with_body(request: Request, reading: Reading) -> Request:
    """Return the request with the translated document as its body, also for the fingerprint of an Idempotency-Key."""
    body = json.dumps(reading.request).encode()
    scope = dict(request.scope)
    headers = MutableHeaders(raw=list(scope["headers"]))
    headers["content-type"] = "application/json"
    headers["content-length"] = str(len(body))
    scope["headers"] = headers.raw
    scope["state"][BODY_STATE] = reading.request
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else dict(await request.receive())

    return Request(scope, receive)


def _placed(error: AmalgamError, reading: Reading) -> AmalgamError:
    """Return the error with its faults where the document has them."""
    if not error.errors:
        return error
    placed = [reading.place(fault) for fault in error.errors]
    before, after = error.errors[0], placed[0]
    detail = error.detail
    if detail.startswith(f"{before.pointer}: ") and before != after:
        detail = f"{after.pointer}: {after.message.partition(': ')[0]}: {detail.removeprefix(f'{before.pointer}: ')}"
    return type(error)(detail, errors=placed)
