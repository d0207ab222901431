"""Keyset pagination: a page begins after the last key of the page before, so inserts neither repeat nor skip a row.

The key is a unique text column that sorts by creation (a UUIDv7 id). A cursor carries the order and a digest of the
filters beside the key, so it is refused where it does not belong.
"""

import base64
import binascii
import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.domain.checkpoints import digest_json
from app.domain.errors import BadCursor
from app.domain.views.pages import PageRequest

Row = TypeVar("Row")


@dataclass(frozen=True)
class NamePage:
    """A slice [start, end) of a sorted list, and the cursor of the next one."""

    start: int
    end: int
    next_cursor: str | None


def made_between(
    at: InstrumentedAttribute[datetime], after: datetime | None, before: datetime | None
) -> list[ColumnElement[bool]]:
    """Return the conditions of `created_after` and `created_before` on an instant."""
    return [*([at > after] if after is not None else []), *([at < before] if before is not None else [])]


def paginate(  # noqa: PLR0913 which rows, which page of them, and what orders them
    session: Session,
    statement: Select[Row],
    *,
    key: InstrumentedAttribute[str],
    request: PageRequest,
    filters: Mapping[str, object],
    at: InstrumentedAttribute[datetime] | None = None,
) -> tuple[list[Row], str | None]:
    """Return the rows of one page and the cursor of the next.

    `at`: the instant that orders the rows where their key does not; equal ones are ordered by the key.
    `filters`: everything that narrows the statement, JSON-able; a cursor holds for equal filters only.
    Raises: BadCursor for a cursor that this list, in this order and with these filters, did not give out.
    """
    belongs_to = _digest(key, request, filters)
    columns = [key] if at is None else [at, key]
    if request.cursor is not None:
        last = tuple_(*_read_last(_decode(request.cursor, belongs_to), has_instant=at is not None))
        here = tuple_(*columns)
        statement = statement.where(here < last if request.is_descending else here > last)
    ordered = statement.order_by(*(column.desc() if request.is_descending else column.asc() for column in columns))
    rows = list(session.scalars(ordered.limit(request.limit + 1)))
    if len(rows) <= request.limit:
        return rows, None
    rows = rows[: request.limit]
    instant = "" if at is None else f"{getattr(rows[-1], at.key).isoformat()} "
    return rows, _encode(f"{instant}{getattr(rows[-1], key.key)}", belongs_to)


def paginate_sorted(
    names: Sequence[str],
    *,
    limit: int,
    cursor: str | None,
    filters: Mapping[str, object],
    is_descending: bool = False,
) -> NamePage:
    """Return one page of names that are sorted, that way or backwards, and differ; of a list that is not in a table.

    Raises: BadCursor for a cursor that this list did not give out.
    """
    belongs_to = digest_json(["names", is_descending, {name: str(value) for name, value in filters.items()}])[:16]
    start = 0 if cursor is None else _start_after(names, _decode(cursor, belongs_to), is_descending=is_descending)
    end = min(start + limit, len(names))
    return NamePage(start, end, _encode(names[end - 1], belongs_to) if end < len(names) else None)


def _start_after(names: Sequence[str], last: str, *, is_descending: bool) -> int:
    return len(names) - bisect_left(names[::-1], last) if is_descending else bisect_right(names, last)


def _read_last(text: str, *, has_instant: bool) -> tuple[object, ...]:
    if not has_instant:
        return (text,)
    instant, _, key = text.partition(" ")
    try:
        return (datetime.fromisoformat(instant), key)
    except ValueError:
        raise _refused() from None


def _digest(key: InstrumentedAttribute[str], request: PageRequest, filters: Mapping[str, object]) -> str:
    given = {name: str(value) for name, value in filters.items() if value is not None}
    return digest_json([str(key), request.order, given])[:16]


def _encode(last: str, belongs_to: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([belongs_to, last]).encode()).decode().rstrip("=")


def _decode(cursor: str, belongs_to: str) -> str:
    try:
        document: Any = json.loads(base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        raise _refused() from None
    match document:
        case [str(digest), str(last)] if digest == belongs_to and "\0" not in last:
            return last
        case _:
            raise _refused()


def _refused() -> BadCursor:
    return BadCursor(
        "The cursor was not given out by this list with these filters and this order. Use `next_cursor` of the page"
        " before unchanged, with the same filters, or leave `cursor` out to start again."
    )
