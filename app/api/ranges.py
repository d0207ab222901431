"""`Range` of a download (RFC 9110): one range of bytes; several, or other units, are answered with the whole file."""

import re
from dataclasses import dataclass

from app.domain.errors import RangeNotSatisfiable

_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*")


@dataclass(frozen=True)
class ByteRange:
    """The bytes [start, end) of a file of `size` bytes."""

    start: int
    end: int
    size: int

    @property
    def content_range(self) -> str:
        """The Content-Range field."""
        return f"bytes {self.start}-{self.end - 1}/{self.size}"


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """Return the range asked for, cut at the file's end; None for the whole file.

    Raises: RangeNotSatisfiable when no byte of the file lies in it.
    """
    match = _RANGE.fullmatch(header) if header is not None else None
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first and last and int(first) > int(last):
        return None  # not a valid range, so there is none
    start, end = (int(first), int(last) + 1 if last else size) if first else (max(0, size - int(last)), size)
    if start >= size or end == start:
        raise RangeNotSatisfiable(f"{header!r} lies outside the file, which has {size} bytes. Ask for 0-{size - 1}.")
    return ByteRange(start, min(end, size), size)
