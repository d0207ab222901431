"""The query parameters that every list shares: limit, cursor, order, created_after, created_before, tag.KEY."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, Query, Request
from pydantic import AfterValidator, AwareDatetime, BeforeValidator

from app.domain.errors import BadCursor, FieldProblem, Invalid
from app.domain.requests import MAX_TAG_VALUE, TAG_KEY_PATTERN
from app.domain.views.pages import DEFAULT_LIMIT, MAX_LIMIT, EventsRequest, NameOrder, Order, PageRequest

MAX_TAG_FILTERS = 16
TAG_PREFIX = "tag."
MAX_SEQUENCE = 2**53
MAX_EVENTS = 1000
_TAG_FORM = (
    f"{TAG_PREFIX}KEY=value as in `tags`: a key of letters, digits, . _ / - and a value of at most 255 characters"
)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]")


def page_request(
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Items on a page.")] = DEFAULT_LIMIT,
    cursor: Annotated[
        str | None, Query(max_length=512, description="`next_cursor` of the page before, with the same filters.")
    ] = None,
    order: Annotated[Order, Query(description="Oldest or newest first.")] = "-created_at",
) -> PageRequest:
    """Return the page that is asked for."""
    return PageRequest(limit=limit, cursor=cursor, order=order)


def tag_filters(request: Request) -> Mapping[str, str]:
    """Return the filters `tag.KEY=value` of the query; all of them must hold."""
    filters = {
        name.removeprefix(TAG_PREFIX): value
        for name, value in request.query_params.items()
        if name.startswith(TAG_PREFIX)
    }
    if len(filters) > MAX_TAG_FILTERS:
        message = f"at most {MAX_TAG_FILTERS} tag filters, found {len(filters)}"
        raise Invalid(f"The query has too many tag filters: {message}.", errors=[FieldProblem("/query/tag", message)])
    faults = [
        FieldProblem(f"/query/{TAG_PREFIX}{key}", f"no tag can have this key or value; expected {_TAG_FORM}")
        for key, value in filters.items()
        if re.fullmatch(TAG_KEY_PATTERN, key) is None or len(value) > MAX_TAG_VALUE
    ]
    if faults:
        raise Invalid(f"{faults[0].pointer}: {faults[0].message}.", errors=faults)
    return filters


# The query parameter for a route's `openapi_extra`: an object whose entries are written out, each under its own name.
TAG_FILTERS: dict[str, Any] = {
    "parameters": [
        {
            "name": "tag",
            "in": "query",
            "required": False,
            "style": "form",
            "explode": True,
            "description": f"`{TAG_PREFIX}KEY=value`: only what has this tag. Of several, all must hold.",
            "schema": {
                "type": "object",
                "propertyNames": {"pattern": rf"^tag\.{TAG_KEY_PATTERN.removeprefix('^')}"},
                "additionalProperties": {"type": "string", "maxLength": MAX_TAG_VALUE},
                "maxProperties": MAX_TAG_FILTERS,
            },
            "example": {f"{TAG_PREFIX}team": "support"},
        }
    ]
}


def short_page(
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Items on a page.")] = MAX_LIMIT,
    cursor: Annotated[str | None, Query(max_length=512, description="`next_cursor` of the page before.")] = None,
    order: Annotated[NameOrder, Query(description="By name, forwards or backwards.")] = "name",
) -> PageRequest:
    """Return the page asked for of a list that is short and sorted by name: one page, unless asked otherwise."""
    return PageRequest(limit=limit, cursor=cursor, order=order)


def _refuse_numbers(value: object) -> object:
    if isinstance(value, str) and _DATE.match(value) is None:
        raise ValueError("must be an instant with a zone, as in 2026-01-31T12:00:00Z")
    return value


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must lie within the years 1 to 9999 in UTC") from None


# Without the first, a number is taken for an instant; without the second, the ends of the calendar overflow.
Instant = Annotated[AwareDatetime, BeforeValidator(_refuse_numbers), AfterValidator(_to_utc)]


def created_after(created_after: Annotated[Instant | None, Query()] = None) -> datetime | None:
    """Return the instant after which items were created."""
    return created_after


def created_before(created_before: Annotated[Instant | None, Query()] = None) -> datetime | None:
    """Return the instant before which items were created."""
    return created_before


def events_request(
    created_after: Annotated[datetime | None, Depends(created_after)],
    created_before: Annotated[datetime | None, Depends(created_before)],
    limit: Annotated[int, Query(ge=1, le=MAX_EVENTS, description="Events in a list.")] = 200,
    after_seq: Annotated[int, Query(ge=0, le=MAX_SEQUENCE, description="Only events after this one.")] = 0,
    cursor: Annotated[str | None, Query(max_length=512, description="`next_cursor` of the page before.")] = None,
    order: Annotated[Order, Query(description="Oldest or newest first.")] = "created_at",
) -> EventsRequest:
    """Return the part of a log that is asked for; a log's cursor is the number of its last event.

    Raises: BadCursor.
    """
    before_seq: int | None = None
    if cursor is not None:
        if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= len(str(MAX_SEQUENCE))):
            advice = "Use `next_cursor` of the page before unchanged."
            raise BadCursor(f"The cursor was not given out by this list. {advice}")
        last = int(cursor)
        after_seq, before_seq = (max(after_seq, last), None) if order == "created_at" else (after_seq, last)
    return EventsRequest(
        after_seq=after_seq,
        before_seq=before_seq,
        created_after=created_after,
        created_before=created_before,
        order=order,
        limit=limit,
    )


ShortPageDep = Annotated[PageRequest, Depends(short_page)]
PageDep = Annotated[PageRequest, Depends(page_request)]
EventsDep = Annotated[EventsRequest, Depends(events_request)]
TagFiltersDep = Annotated[Mapping[str, str], Depends(tag_filters)]
CreatedAfterDep = Annotated[datetime | None, Depends(created_after)]
CreatedBeforeDep = Annotated[datetime | None, Depends(created_before)]
