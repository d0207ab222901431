"""The store that a URL names."""

from pathlib import Path

from app.storage.base import Storage
from app.storage.buckets import Bucket
from app.storage.local import LocalStorage
from app.storage.s3 import S3Storage
from app.storage.uris import FileUri, parse_uri

CACHE_BYTES = 50 << 30


def open_storage(store_url: str, cache: Path, scratch: Path, *, cache_bytes: int = CACHE_BYTES) -> Storage:
    """Return the store at `file:///folder` or `s3://bucket/prefix`; nothing is reached yet.

    cache: folder for what is fetched from a bucket; scratch: folder for what is on its way into one.
    Raises: UriNotAllowed for any other URL.
    """
    parsed = parse_uri(store_url)
    if isinstance(parsed, FileUri):
        return LocalStorage(Path(parsed.path))
    return S3Storage(Bucket(parsed.bucket, parsed.key), cache, scratch, cache_bytes=cache_bytes)
