"""One shape for every list: a page of items, and the cursor of the next one."""

from datetime import datetime
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Item = TypeVar("Item")
Order = Literal["created_at", "-created_at"]
NameOrder = Literal["name", "-name"]

DEFAULT_LIMIT = 50
MAX_LIMIT = 200


class PageRequest(BaseModel):
    """Which page of a list is asked for. The cursor comes from the page before, with the same filters and order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: int = Field(default=DEFAULT_LIMIT, ge=1, le=MAX_LIMIT)
    cursor: str | None = None
    order: Order | NameOrder = "-created_at"

    @property
    def is_descending(self) -> bool:
        """Whether the list runs backwards."""
        return self.order.startswith("-")


class EventsRequest(BaseModel):
    """Which part of a log is asked for: numbers within (after_seq, before_seq), instants likewise, in one order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    after_seq: int = 0
    before_seq: int | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    order: Order = "created_at"
    limit: int

    @property
    def is_plain(self) -> bool:
        """Whether it asks for everything after a number, oldest first, as a stream does."""
        narrowing = (self.before_seq, self.created_after, self.created_before)
        return self.order == "created_at" and all(value is None for value in narrowing)


class Page(BaseModel, Generic[Item]):
    """A page of a list; `next_cursor` is null on the last one."""

    model_config = ConfigDict(frozen=True)

    items: list[Item]
    next_cursor: str | None = None
