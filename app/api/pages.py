"""The query parameters that every list shares: limit, cursor, order, created_after, created_before, tag.KEY."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Query, Request
from pydantic import AfterValidator, AwareDatetime, BeforeValidator

from app.domain.errors import BadCursor, FieldProblem, Invalid
from app.domain.views.pages import DEFAULT_LIMIT, MAX_LIMIT, Order, PageRequest

MAX_TAG_FILTERS = 16
MAX_SEQUENCE = 2**53
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
        name.removeprefix("tag."): value for name, value in request.query_params.items() if name.startswith("tag.")
    }
    if len(filters) > MAX_TAG_FILTERS:
        message = f"at most {MAX_TAG_FILTERS} tag filters, found {len(filters)}"
        raise Invalid(f"The query has too many tag filters: {message}.", errors=[FieldProblem("/query/tag", message)])
    return filters


def short_page(
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Items on a page.")] = MAX_LIMIT,
    cursor: Annotated[str | None, Query(max_length=512, description="`next_cursor` of the page before.")] = None,
) -> PageRequest:
    """Return the page asked for of a list that is short and sorted by name: one page, unless asked otherwise."""
    return PageRequest(limit=limit, cursor=cursor)


def events_after(
    after_seq: Annotated[int, Query(ge=0, le=MAX_SEQUENCE, description="Only events after this one.")] = 0,
    cursor: Annotated[str | None, Query(max_length=512, description="`next_cursor` of the page before.")] = None,
) -> int:
    """Return the sequence number after which events are asked for; a log's cursor is the number of its last event.

    Raises: BadCursor.
    """
    if cursor is None:
        return after_seq
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= len(str(MAX_SEQUENCE))):
        raise BadCursor("The cursor was not given out by this list. Use `next_cursor` of the page before unchanged.")
    return max(after_seq, int(cursor))


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


ShortPageDep = Annotated[PageRequest, Depends(short_page)]
PageDep = Annotated[PageRequest, Depends(page_request)]
EventsAfterDep = Annotated[int, Depends(events_after)]
TagFiltersDep = Annotated[Mapping[str, str], Depends(tag_filters)]
CreatedAfterDep = Annotated[datetime | None, Depends(created_after)]
CreatedBeforeDep = Annotated[datetime | None, Depends(created_before)]
