"""URIs as callers give them: decoded once, checked, and never joined to a path of ours before that.

`file:///folder` and `s3://bucket/prefix` are read; everything else is refused with what would be accepted.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote_to_bytes

from app.domain.errors import UriNotAllowed

MAX_CHARACTERS = 2048
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_NOT_READ = {
    "gs": "Google Cloud Storage",
    "hf": "the Hugging Face Hub",
    "http": "a web address",
    "https": "a web address",
}
_ALLOWED = "Use file:///folder below one of the service's file roots, or s3://bucket/prefix."


@dataclass(frozen=True)
class FileUri:
    """A local path, absolute and without `.` or `..`."""

    path: PurePosixPath


@dataclass(frozen=True)
class ObjectUri:
    """A key or a prefix in a bucket; the key has no leading or trailing slash."""

    bucket: str
    key: str


def parse_uri(uri: str) -> FileUri | ObjectUri:
    """Return what a URI means. Raises: UriNotAllowed saying what is wrong and what would do."""
    if len(uri) > MAX_CHARACTERS:
        raise _refused(uri, f"has {len(uri)} characters, at most {MAX_CHARACTERS} are read")
    if _CONTROL.search(uri):
        raise _refused(uri, "holds control characters")
    match = _SCHEME.match(uri)
    if match is None:
        raise _refused(uri, "has no scheme; a local folder is written file:///absolute/path")
    scheme, rest = match.group(1).lower(), uri[match.end() :]
    if scheme == "file":
        return _parse_file(uri, rest)
    if scheme == "s3":
        return _parse_object(uri, rest)
    place = _NOT_READ.get(scheme)
    raise _refused(
        uri, f"names {place}, which is not read" if place else f"has the scheme {scheme!r}, which is not read"
    )


def _parse_file(uri: str, rest: str) -> FileUri:
    if "?" in rest or "#" in rest:
        raise _refused(uri, "has a query or a fragment; write ? and # of a file's name as %3F and %23")
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise _refused(uri, f"names the host {host!r}; a local path has none: file:///absolute/path")
        rest = slash + path
    if not rest.startswith("/"):
        raise _refused(uri, "is not absolute; write file:///absolute/path")
    parts = _decode(uri, rest).split("/")
    return FileUri(PurePosixPath("/", *(part for part in parts if part)))


def _parse_object(uri: str, rest: str) -> ObjectUri:
    if not rest.startswith("//"):
        raise _refused(uri, "has no bucket; write s3://bucket/prefix")
    if "?" in rest or "#" in rest:
        raise _refused(uri, "has a query or a fragment; write ? and # of a key as %3F and %23")
    bucket, _, key = rest[2:].partition("/")
    if _BUCKET.fullmatch(bucket) is None or ".." in bucket:
        raise _refused(uri, f"has {bucket!r} where a bucket's name must stand")
    key = _decode(uri, key).strip("/")
    if "//" in key:
        raise _refused(uri, "has an empty segment in its key")
    return ObjectUri(bucket, key)


def _decode(uri: str, text: str) -> str:
    """Return the percent-decoded text, whose segments are plain names. Decoded once; what is encoded twice stays."""
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise _refused(uri, "has a % that begins no percent code; write % itself as %25")
    try:
        decoded = unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise _refused(uri, "is not UTF-8 after percent-decoding") from None
    if _CONTROL.search(decoded):
        raise _refused(uri, "holds control characters")
    if "\\" in decoded:
        raise _refused(uri, "holds a backslash; folders are separated by /")
    if any(part in (".", "..") for part in decoded.split("/")):
        raise _refused(uri, "holds . or .. as a segment; write the path without them")
    return decoded


def _refused(uri: str, found: str) -> UriNotAllowed:
    shown = uri if len(uri) <= 200 else f"{uri[:200]}…"
    return UriNotAllowed(f"The URI {shown!r} {found}. {_ALLOWED}")
