"""The same POST twice is the first answer twice: Idempotency-Key, kept in the transaction of what it created.

A creating service begins its transaction with `replay` and ends it with `store_answer`. Two requests with one key
cannot overlap: SQLite admits one writer, PostgreSQL takes a lock on the key until the transaction ends.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic import BaseModel
from sqlalchemy.orm import Session

from app.db.locks import lock
from app.db.tables import IdempotencyKey, utc_now
from app.domain.errors import IdempotencyKeyReused
from app.services.actors import Actor

KEPT = timedelta(hours=48)  # the contract promises at least 24 hours


@dataclass(frozen=True)
class IdempotentRequest:
    """A POST with an Idempotency-Key. `fingerprint`: sha256 of method, path, query and canonical JSON body."""

    key: str
    fingerprint: str
    status: int  # of the first answer, should this be the first


@dataclass(frozen=True)
class StoredAnswer:
    """The first answer, as it was sent."""

    status: int
    location: str | None
    body: dict[str, Any]


class Replayed(Exception):
    """Not an error: leaves the service's transaction with the answer that was given before."""

    def __init__(self, answer: StoredAnswer) -> None:
        super().__init__("replayed")
        self.answer = answer


def replay(session: Session, actor: Actor, request: IdempotentRequest | None) -> None:
    """Return if this request is new; otherwise raise the first answer.

    Raises: Replayed; IdempotencyKeyReused when the key came with another request.
    """
    if request is None:
        return
    answer = find_answer(session, actor, request)
    if answer is not None:
        raise Replayed(answer)


def find_answer(session: Session, actor: Actor, request: IdempotentRequest) -> StoredAnswer | None:
    """Return the answer stored under the request's key, or None.

    Raises: IdempotencyKeyReused when the key came with another request.
    """
    lock(session, "idempotency", actor.project_id, request.key)
    row = session.get(IdempotencyKey, (actor.project_id, request.key))
    if row is None:
        return None
    if row.expires_at <= utc_now():
        session.delete(row)
        session.flush()
        return None
    if row.fingerprint != request.fingerprint:
        raise IdempotencyKeyReused(
            f"Idempotency-Key {request.key!r} was used at {row.created_at:%Y-%m-%d %H:%M:%S} UTC for a request with"
            " another path or body. Send the first request again unchanged, or make a new key for this one."
        )
    return StoredAnswer(row.status, row.location, row.body)


def store_answer(
    session: Session,
    actor: Actor,
    request: IdempotentRequest | None,
    body: BaseModel,
    location: str | None,
) -> None:
    """Keep the answer for `KEPT`; nothing to do without a key."""
    if request is None:
        return
    now = utc_now()
    session.add(
        IdempotencyKey(
            project_id=actor.project_id,
            key=request.key,
            fingerprint=request.fingerprint,
            status=request.status,
            location=location,
            body=body.model_dump(mode="json"),
            created_at=now,
            expires_at=now + KEPT,
        )
    )
    session.flush()
