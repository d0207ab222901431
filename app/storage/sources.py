"""Where checkpoints and data come from: `file:` below the roots, and `s3:`. Looked at once, checked at every use."""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from app.domain.checkpoints import FileEntry
from app.domain.errors import InputChanged, UriNotAllowed, UriNotFound
from app.domain.needs import FileRange
from app.domain.sources import SourceFile, SourceListing
from app.storage.base import UNWATCHED, Watch
from app.storage.buckets import PATIENCE_SECONDS, Bucket, BucketForbidden, BucketMissing, ObjectChanged
from app.storage.folders import KEEP_SECONDS, ObjectFolder, Views, sweep_files, translated
from app.storage.local_sources import MAX_FILES, FileRoots
from app.storage.partial import RangeCache
from app.storage.uris import FileUri, ObjectUri, parse_uri


class Sources:
    """What may be read from outside the store."""

    def __init__(
        self,
        roots: Sequence[Path],
        cache: Path,
        *,
        cache_bytes: int = 50 << 30,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._patience_seconds = patience_seconds
        self._roots = FileRoots(roots)
        self._cache = ObjectFolder(cache / "sources")
        self._views = Views(cache / "sources" / "views")
        self._cache_bytes = cache_bytes
        self._buckets: dict[str, Bucket] = {}
        self._lock = threading.Lock()

    def look(self, uri: str) -> SourceListing:
        """Return the files at a URI: a folder's, or the one file it names.

        Raises: UriNotAllowed, UriNotFound, Unavailable.
        """
        parsed = parse_uri(uri)
        if isinstance(parsed, FileUri):
            return self._roots.look(uri, parsed)
        try:
            return self._look_objects(uri, parsed)
        except BucketMissing as error:
            raise UriNotFound(f"Nothing lies at {uri!r}: there is no bucket {parsed.bucket!r}.") from error
        except BucketForbidden as error:
            raise UriNotAllowed(f"{uri!r} cannot be read. {error.detail}") from error

    def check(self, uri: str, listing: SourceListing, *, watch: Watch = UNWATCHED) -> None:
        """Return if what was listed is unchanged.

        Raises: InputChanged naming the file, Unavailable; what the watch raises.
        """
        parsed = parse_uri(uri)
        if isinstance(parsed, FileUri):
            self._roots.check(uri, parsed, listing)
        else:
            self._check_objects(uri, parsed, listing, watch)

    def fetch(self, uri: str, listing: SourceListing, *, watch: Watch = UNWATCHED) -> Path:
        """Return the folder, or the one file, on this machine; objects are downloaded once per ETag.

        Raises: InputChanged, UriNotAllowed, UriNotFound, OutOfDisk, Unavailable; what the watch raises.
        """
        parsed = parse_uri(uri)
        if isinstance(parsed, FileUri):
            return self._roots.locate(uri, parsed)
        with translated(f"fetching {uri!r}"):
            view = self._fetch_objects(uri, parsed, listing, watch)
        return view / listing.files[0].path if listing.is_file else view

    def fetch_ranges(
        self, uri: str, listing: SourceListing, ranges: Sequence[FileRange], *, watch: Watch = UNWATCHED
    ) -> Path:
        """Return a folder of those files of a prefix that have ranges here: whole, or as these ranges.

        Every range is asked for under the ETag that was registered. Raises: as `fetch`, which local files leave it to.
        """
        parsed = parse_uri(uri)
        if isinstance(parsed, FileUri):
            return self.fetch(uri, listing, watch=watch)
        paths = {one.path for one in ranges}
        used = {file.path: file for file in listing.files if file.path in paths}

        def read(entry: FileEntry, one: FileRange) -> Iterator[bytes]:
            file = used[entry.path]
            key = _object_key(parsed, file, listing)
            chunks = self._bucket(parsed).read(key, one.begin, one.end, etag=file.etag, watch=watch)
            return _unchanged(uri, file, chunks)

        with translated(f"fetching parts of {uri!r}"):
            entries = [_cached(parsed, file, listing) for file in used.values()]
            view = RangeCache(self._cache, self._views, read).fetch(entries, ranges, watch)
            self._cache.trim(self._cache_bytes, unused_seconds=KEEP_SECONDS)
            return view

    def read_listed(
        self, uri: str, listing: SourceListing, file: SourceFile, *, watch: Watch = UNWATCHED
    ) -> Iterator[bytes]:
        """Yield the bytes of one listed file; whoever takes them counts them, the watch may only stop them.

        Raises: UriNotAllowed, UriNotFound, Unavailable; InputChanged when an object has another ETag.
        """
        parsed = parse_uri(uri)
        if isinstance(parsed, FileUri):
            return self._roots.read(uri, parsed, below=None if listing.is_file else file.path)
        key = _object_key(parsed, file, listing)
        chunks = self._bucket(parsed).read(key, 0, file.size_bytes, etag=file.etag, watch=watch)
        return _unchanged(uri, file, chunks)

    def stat_file(self, uri: str) -> SourceFile:
        """Return size and identity of the one file a URI names. Raises: UriNotAllowed, UriNotFound, Unavailable."""
        listing = self.look(uri)
        if not listing.is_file:
            raise UriNotAllowed(f"{uri!r} is a folder; name one file.")
        return listing.files[0]

    def read_file(self, uri: str) -> Iterator[bytes]:
        """Yield the bytes of the one file that a URI names. Raises: UriNotAllowed, UriNotFound, Unavailable."""
        parsed = parse_uri(uri)
        if isinstance(parsed, FileUri):
            return self._roots.read(uri, parsed)
        file = self.stat_file(uri)
        return _unchanged(uri, file, self._bucket(parsed).read(parsed.key, 0, file.size_bytes, etag=file.etag))

    def sweep(self, *, older_than_seconds: float) -> int:
        """Remove what crashes left in the cache, and what was not used for hours; return how many things."""
        with translated("sweeping the cache"):
            removed = sweep_files(self._cache.temp, older_than_seconds=older_than_seconds)
            removed += self._views.sweep(unused_seconds=KEEP_SECONDS)
            self._cache.trim(self._cache_bytes, unused_seconds=KEEP_SECONDS)
            return removed

    # --- objects --------------------------------------------------------------------------------------------------

    def _look_objects(self, uri: str, parsed: ObjectUri) -> SourceListing:
        bucket = self._bucket(parsed)
        single = bucket.head(parsed.key) if parsed.key else None
        if single is not None:
            name = parsed.key.rsplit("/", 1)[-1]
            file = SourceFile(path=name, size_bytes=single["size"], etag=single["e_tag"])
            return SourceListing(is_file=True, files=(file,))
        start = len(parsed.key) + 1 if parsed.key else 0
        files: list[SourceFile] = []
        for found in bucket.list_objects(parsed.key):
            path = found["path"][start:]
            if path and not any(part.startswith(".") for part in path.split("/")):
                files.append(SourceFile(path=path, size_bytes=found["size"], etag=found["e_tag"]))
            if len(files) > MAX_FILES:
                raise UriNotAllowed(f"{uri!r} holds more than {MAX_FILES} objects; name the checkpoint's own prefix.")
        if not files:
            raise UriNotFound(f"Nothing lies at {uri!r}. Look at the spelling of bucket and prefix.")
        return SourceListing(is_file=False, files=tuple(sorted(files, key=lambda file: file.path)))

    def _check_objects(self, uri: str, parsed: ObjectUri, listing: SourceListing, watch: Watch) -> None:
        bucket = self._bucket(parsed)
        for file in listing.files:
            watch.moved()
            found = bucket.head(_object_key(parsed, file, listing), watch=watch)
            if found is None:
                raise InputChanged(f"{file.path!r} of {uri!r} is not there any more; put it back.")
            if (found["size"], found["e_tag"]) != (file.size_bytes, file.etag):
                detail = f"registered with ETag {file.etag}, found {found['e_tag']}"
                raise InputChanged(f"{file.path!r} of {uri!r} changed ({detail}); register it again.")

    def _fetch_objects(self, uri: str, parsed: ObjectUri, listing: SourceListing, watch: Watch) -> Path:
        entries = [_cached(parsed, file, listing) for file in listing.files]
        missing = [
            (file, entry.sha256)
            for file, entry in zip(listing.files, entries, strict=True)
            if self._cache.touch(entry.sha256) != file.size_bytes
        ]
        watch.expect(sum(file.size_bytes for file, _ in missing))
        for file, name in missing:
            self._cache.fill(name, self.read_listed(uri, listing, file, watch=watch), watch)
        view = self._views.show(entries, self._cache.path, watch=watch)
        self._cache.trim(self._cache_bytes, unused_seconds=KEEP_SECONDS)
        return view

    def _bucket(self, parsed: ObjectUri) -> Bucket:
        with self._lock:
            if parsed.bucket not in self._buckets:
                self._buckets[parsed.bucket] = Bucket(parsed.bucket, patience_seconds=self._patience_seconds)
            return self._buckets[parsed.bucket]


def _unchanged(uri: str, file: SourceFile, chunks: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from chunks
    except (FileNotFoundError, ObjectChanged):
        raise InputChanged(f"{file.path!r} of {uri!r} changed or is gone; register it again.") from None


def _cached(parsed: ObjectUri, file: SourceFile, listing: SourceListing) -> FileEntry:
    """Return the entry of an object in the cache, named for this very version of it."""
    version = f"{parsed.bucket}\0{_object_key(parsed, file, listing)}\0{file.etag}"
    name = hashlib.sha256(version.encode()).hexdigest()
    return FileEntry(path=file.path, size_bytes=file.size_bytes, sha256=name)


def _object_key(parsed: ObjectUri, file: SourceFile, listing: SourceListing) -> str:
    if listing.is_file:
        return parsed.key
    return f"{parsed.key}/{file.path}" if parsed.key else file.path
