"""Digest fields of RFC 9530: `Content-Digest: sha-256=:<base64>:`."""

import base64
import binascii
import re

from app.domain.errors import BadRequest

_MEMBER = re.compile(r"([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/]*={0,2}):")


def parse_content_digest(header: str | None) -> str | None:
    """Return the sha-256 (hex) that `Content-Digest` announces; None without one. Other algorithms are passed over.

    Raises: BadRequest for a field that cannot be read.
    """
    if header is None:
        return None
    found: str | None = None
    for member in header.split(","):
        match = _MEMBER.fullmatch(member.strip())
        if match is None:
            raise _unreadable(header)
        if match.group(1) == "sha-256":
            found = _decode(header, match.group(2))
    return found


def write_digest(sha256: str) -> str:
    """Return the field for a sha256 in hex."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def _decode(header: str, text: str) -> str:
    try:
        digest = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise _unreadable(header) from None
    if len(digest) != 32:
        raise _unreadable(header)
    return digest.hex()


def _unreadable(header: str) -> BadRequest:
    return BadRequest(
        f"Content-Digest is {header[:120]!r}; expected sha-256=:<base64 of the file's sha256>:, as in RFC 9530."
    )
