"""The store that a URL names."""

from pathlib import Path

from app.storage.base import Storage
from app.storage.buckets import PATIENCE_SECONDS, Bucket
from app.storage.local import LocalStorage
from app.storage.s3 import S3Storage
from app.storage.uris import FileUri, parse_uri

CACHE_BYTES = 50 << 30


def open_storage(
    store_url: str,
    cache: Path,
    scratch: Path,
    *,
    cache_bytes: int = CACHE_BYTES,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Storage:
    """Return the store at `file:///folder` or `s3://bucket/prefix`; nothing is reached yet.

    cache: folder for what is fetched from a bucket; scratch: folder for what is on its way into one.
    patience_seconds: how long a bucket that is away is waited for.
    Raises: UriNotAllowed for any other URL.
    """
    parsed = parse_uri(store_url)
    if isinstance(parsed, FileUri):
        return LocalStorage(Path(parsed.path))
    return S3Storage(
        Bucket(parsed.bucket, parsed.key, patience_seconds=patience_seconds), cache, scratch, cache_bytes=cache_bytes
    )
