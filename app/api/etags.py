"""ETags of resources: the row's revision in quotes. `If-Match` names the one that a change is based on."""

import re

from app.domain.errors import BadRequest

ANY = "*"
NO_REVISION = 0  # revisions begin with 1: a tag that is not ours matches nothing
_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e]*)"')


def etag(revision: int) -> str:
    """Return the ETag of a revision."""
    return f'"{revision}"'


def parse_if_match(header: str | None) -> int | None:
    """Return the revision that `If-Match` names; None for no header and for `*`.

    Raises: BadRequest for what is no ETag, and for several.
    """
    if header is None or header.strip() == ANY:
        return None
    match = _TAG.fullmatch(header.strip())
    if match is None:
        raise BadRequest(f'If-Match is {header[:80]!r}; expected one ETag as it was sent, with its quotes: "7".')
    is_weak, tag = match.groups()
    return int(tag) if not is_weak and re.fullmatch(r"[1-9][0-9]{0,17}", tag) else NO_REVISION


def parse_if_none_match(header: str | None) -> bool:
    """Return whether `If-None-Match: *` asks for a resource that is not there yet.

    Raises: BadRequest for anything but `*`.
    """
    if header is not None and header.strip() != ANY:
        raise BadRequest(f"If-None-Match is {header[:80]!r}; only * is understood here: make it if it is not there.")
    return header is not None


def is_listed(header: str | None, tag: str) -> bool:
    """Tell whether an `If-None-Match` of a download lists this strong ETag (weak comparison), or is `*`."""
    if header is None:
        return False
    return header.strip() == ANY or any(found == tag.strip('"') for _, found in _TAG.findall(header))
