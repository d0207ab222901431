"""Ids, names and refs: prefixed UUIDv7s, the form of a name, and `id | name | name@3 | name@alias | sha256:…`."""

import os
import re
import time
import uuid
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

ID_PREFIXES = ("ckpt", "job", "art", "task", "trg", "whk", "key", "upl", "wrk", "met")
MAX_NAME = 128
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ID = re.compile(rf"({'|'.join(ID_PREFIXES)})_[0-9a-f]{{32}}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REFERENCE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,127})(?:@([A-Za-z0-9][A-Za-z0-9._-]{0,127}))?")


def new_id(prefix: str) -> str:
    """Return `<prefix>_<32 hex digits>`: a UUIDv7 whose 12 bits after the millisecond are its fraction.

    So ids sort by when they were made, to a quarter of a microsecond (RFC 9562, section 6.2, method 3).
    """
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    random = int.from_bytes(os.urandom(8), "big")
    value = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | (nanoseconds * 4096 // 1_000_000) << 64
    value |= 0b10 << 62 | random & (1 << 62) - 1
    return f"{prefix}_{uuid.UUID(int=value).hex}"


def is_id(text: str) -> bool:
    """Tell whether the text has the form of an id."""
    return _ID.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Tell whether the text has the form of a name."""
    return _NAME.fullmatch(text) is not None


def _check_name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise ValueError("must match [A-Za-z0-9][A-Za-z0-9._-]{0,127}")
    if name.split("_", 1)[0] in ID_PREFIXES and "_" in name:
        raise ValueError(f"must not begin with an id prefix ({', '.join(f'{p}_' for p in ID_PREFIXES)})")
    return name


def _check_reference(text: str) -> str:
    parse_reference(text)
    return text


Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"),
    AfterValidator(_check_name),
]
ReferenceText = Annotated[
    str,
    StringConstraints(min_length=1, max_length=257, pattern=r"^[A-Za-z0-9][A-Za-z0-9._@:-]*$"),
    AfterValidator(_check_reference),
]


@dataclass(frozen=True)
class Reference:
    """A parsed ref: an id, a content digest (as in recipe.json), or a name with an optional version or alias."""

    id: str | None = None
    content_digest: str | None = None
    name: str | None = None
    version: int | None = None
    alias: str | None = None


def parse_reference(text: str) -> Reference:
    """Parse `ckpt_…`, `sha256:<content digest>`, `name`, `name@3` or `name@alias`.

    Raises: ValueError when the text has none of these forms.
    """
    if is_id(text):
        return Reference(id=text)
    if _DIGEST.fullmatch(text) is not None:
        return Reference(content_digest=text.removeprefix("sha256:"))
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise ValueError("must be an id (ckpt_…), a name, name@version, name@alias or sha256:<content digest>")
    name, suffix = match.groups()
    if suffix is None:
        return Reference(name=name)
    if suffix.isascii() and suffix.isdigit():
        return Reference(name=name, version=int(suffix[:10]))
    return Reference(name=name, alias=suffix)
