"""What a route asks for, as Annotated types. None of them holds a database session while a request waits.

The door (app/main.py) builds the wiring once and puts it into the application's state.
"""

import hashlib
from functools import partial
from typing import Annotated, cast

from fastapi import Depends, Header, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from app.api import pages
from app.api.middleware import BODY_STATE
from app.db.engine import Sessions
from app.domain.catalog import Catalog
from app.domain.checkpoints import digest_json
from app.domain.errors import BadRequest, FieldProblem, Invalid, near_match
from app.queue import JobQueue
from app.services.actors import Actor
from app.services.idempotency import IdempotentRequest
from app.services.wiring import Wiring
from app.storage.base import Storage

MAX_KEY_CHARACTERS = 255
KEY_WITHOUT_EFFECT = "Accepted, but nothing is stored here: every request is answered anew."


def wiring(request: Request) -> Wiring:
    """Return what the door has built."""
    return cast(Wiring, request.app.state.wiring)


def _sessions(request: Request) -> Sessions:
    return wiring(request).sessions


def _catalog(request: Request) -> Catalog:
    return wiring(request).catalog


def _storage(request: Request) -> Storage:
    return wiring(request).storage


def _queue(request: Request) -> JobQueue:
    return wiring(request).queue


def _actor(request: Request) -> Actor:
    state = request.scope["state"]
    return Actor(request_id=state["request_id"], traceparent=state["traceparent"])


_key = partial(Header, min_length=1, max_length=MAX_KEY_CHARACTERS, pattern=r"^[\x21-\x7e]+$")


def idempotent_request(
    request: Request,
    idempotency_key: Annotated[
        str | None, _key(description="The same key with the same body gives the first answer again; kept for 48 hours.")
    ] = None,
) -> IdempotentRequest | None:
    """Return the request's Idempotency-Key with a fingerprint of what it asks for, or None without a key."""
    if idempotency_key is None:
        return None
    body = request.scope["state"].get(BODY_STATE)
    content = digest_json([request.method, request.url.path, request.url.query, body])
    route = request.scope.get("route")
    status = (route.status_code if isinstance(route, APIRoute) else None) or 200
    return IdempotentRequest(idempotency_key, hashlib.sha256(content.encode()).hexdigest(), status)


def accept_key(idempotency_key: Annotated[str | None, _key(description=KEY_WITHOUT_EFFECT)] = None) -> None:
    """Accept an Idempotency-Key where nothing is stored; one that is no key is refused as everywhere."""


def refuse_unknown_query(request: Request) -> None:
    """Refuse query parameters that the route does not know; elsewhere they would be ignored in silence.

    Raises: Invalid with the nearest known name.
    """
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return
    dependants = list(_flat(route.dependant))
    known = [parameter.alias for dependant in dependants for parameter in dependant.query_params]
    has_tags = any(dependant.call is pages.tag_filters for dependant in dependants)
    unknown = [
        name for name in request.query_params if name not in known and not (has_tags and name.startswith("tag."))
    ]
    faults = [
        FieldProblem(
            f"/query/{name}",
            f"unknown query parameter {name!r}; known here: {', '.join(sorted(known)) or 'none'}",
            near_match(name, known),
        )
        for name in dict.fromkeys(unknown)
    ]
    if faults:
        raise Invalid(f"{faults[0].message[:1].upper()}{faults[0].message[1:]}.", errors=faults[:50])


def _flat(dependant: Dependant) -> list[Dependant]:
    return [dependant, *(found for below in dependant.dependencies for found in _flat(below))]


def require_positive_sequence(text: str | None) -> int:
    """Return the sequence number of a `Last-Event-ID` header; 0 without one.

    Raises: BadRequest for anything that no event of ours carries.
    """
    if text is None or text == "":
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise BadRequest(
            f"Last-Event-ID is {text[:80]!r}; expected the number of an event. Leave it out to start over."
        )
    return int(text)


WiringDep = Annotated[Wiring, Depends(wiring)]
SessionsDep = Annotated[Sessions, Depends(_sessions)]
CatalogDep = Annotated[Catalog, Depends(_catalog)]
StorageDep = Annotated[Storage, Depends(_storage)]
QueueDep = Annotated[JobQueue, Depends(_queue)]
ActorDep = Annotated[Actor, Depends(_actor)]
IdempotencyDep = Annotated[IdempotentRequest | None, Depends(idempotent_request)]
