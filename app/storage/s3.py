"""A store in an S3-compatible bucket, with a local cache of what was fetched.

`s3://bucket/prefix/objects/sha256/ab/<digest>`. Fetched objects lie in the cache by digest and are shown in folders by
hard link; the cache is kept below a size, longest unused first, sparing what was used within the last hours.
"""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from app.domain.checkpoints import FileEntry
from app.domain.errors import ArtifactGone, Unavailable
from app.domain.needs import FileRange
from app.storage.base import UNWATCHED, Growing, TempObject, Watch, object_key
from app.storage.buckets import Bucket, ObjectChanged
from app.storage.folders import KEEP_SECONDS, ObjectFolder, Views, sweep_files, translated
from app.storage.growing import INCOMING, Bring, GrowingFiles
from app.storage.incoming import TempFile
from app.storage.partial import RangeCache
from app.storage.uploads import abort_uploads

PREFIX = "objects/sha256"
PUT_AGAIN_SECONDS = 600.0  # an object older than this is put again, so that no sweep takes it for forgotten


class S3Storage:
    """A base.Storage over a bucket."""

    is_remote = True

    def __init__(self, bucket: Bucket, cache: Path, scratch: Path, *, cache_bytes: int) -> None:
        self._bucket = bucket
        self._cache = ObjectFolder(cache / "store")
        self._views = Views(cache / "store" / "views")
        self._incoming = scratch / "incoming"
        self._cache_bytes = cache_bytes

    def publish(self, directory: Path, files: Sequence[FileEntry], *, watch: Watch = UNWATCHED) -> None:
        """Put the files of a folder into the bucket."""
        for file in self._find_missing(directory, files, watch):
            self._put(directory / file.path, file.sha256, watch, self._put_file)

    def follow(self, directory: Path, *, watch: Watch = UNWATCHED) -> Growing:
        """Return what sends large files of a folder into the bucket while they are made."""
        return GrowingFiles(self._bucket, directory, self._find_missing, self._put, watch)

    def fetch(self, files: Sequence[FileEntry], *, watch: Watch = UNWATCHED) -> Path:
        """Return a folder of the files, downloaded where the cache does not have them."""
        with translated("fetching a checkpoint"):
            missing = [file for file in files if self._cache.touch(file.sha256) != file.size_bytes]
            watch.expect(sum(file.size_bytes for file in missing))
            for file in missing:
                self._download(file, watch)
            view = self._views.show(files, self._cache.path, watch=watch)
            self._cache.trim(self._cache_bytes, unused_seconds=KEEP_SECONDS)
            return view

    def fetch_ranges(
        self, files: Sequence[FileEntry], ranges: Sequence[FileRange], *, watch: Watch = UNWATCHED
    ) -> Path:
        """Return a folder of the files, or of these ranges of those that the cache does not have."""
        etags: dict[str, str | None] = {}

        def read(file: FileEntry, one: FileRange) -> Iterator[bytes]:
            if file.sha256 not in etags:
                etags[file.sha256] = self._find_etag(file, watch)
            return self._read_range(file, one, etags[file.sha256], watch)

        with translated("fetching parts of a checkpoint"):
            view = RangeCache(self._cache, self._views, read).fetch(files, ranges, watch)
            self._cache.trim(self._cache_bytes, unused_seconds=KEEP_SECONDS)
            return view

    def read(self, sha256: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes [start, end) of an object."""
        size = self.size(sha256)
        if size is None:
            raise ArtifactGone(f"The bytes sha256:{sha256} are not in the store any more.")
        return self._bucket.read(object_key(sha256), start, size if end is None else end)

    def size(self, sha256: str) -> int | None:
        """Return the size of an object in bytes, or None."""
        found = self._bucket.head(object_key(sha256))
        return None if found is None else found["size"]

    def delete(self, sha256s: Iterable[str], *, min_age_seconds: float) -> int:
        """Delete objects not put for so long."""
        deleted = 0
        for sha256 in sha256s:
            found = self._bucket.head(object_key(sha256))  # looked at again right before: it may have been put just now
            if found is not None and _age_seconds(found["last_modified"]) >= min_age_seconds:
                self._bucket.delete(object_key(sha256))
                deleted += 1
        return deleted

    def list_objects(self) -> Iterator[tuple[str, float]]:
        """Yield (sha256, age in seconds) of every object."""
        for found in self._bucket.list_objects(PREFIX):
            sha256 = found["path"].rsplit("/", 1)[-1]
            if found["path"] == f"{PREFIX}/{sha256[:2]}/{sha256}":  # nothing else that somebody put there
                yield sha256, _age_seconds(found["last_modified"])

    def new_temp(self, *, watch: Watch = UNWATCHED) -> TempObject:
        """Return a place to write bytes whose digest is not known yet: a local file, put when it is complete."""

        def put(file: Path, sha256: str) -> None:
            watch.expect(file.stat().st_size)
            if not self._has(sha256, file.stat().st_size, watch):
                self._put(file, sha256, watch, self._put_file)

        with translated("an upload"):
            self._incoming.mkdir(parents=True, exist_ok=True)
            return TempFile(self._incoming / uuid.uuid4().hex, put, watch)

    def sweep_temp(self, *, older_than_seconds: float) -> int:
        """Remove what crashes left behind, here and in the bucket, and unused folders of the cache."""
        removed = abort_uploads(self._bucket, older_than_seconds=older_than_seconds)
        for found in self._bucket.list_objects(INCOMING):
            if _age_seconds(found["last_modified"]) >= older_than_seconds:
                self._bucket.delete(found["path"])
                removed += 1
        with translated("sweeping the cache"):
            removed += sweep_files(self._incoming, older_than_seconds=older_than_seconds)
            removed += sweep_files(self._cache.temp, older_than_seconds=older_than_seconds)
            removed += self._views.sweep(unused_seconds=KEEP_SECONDS)
            self._cache.trim(self._cache_bytes, unused_seconds=KEEP_SECONDS)
            return removed

    def free_bytes(self) -> int | None:
        """Return None: a bucket has no limit that can be seen, and this machine's disk says nothing of the workers'."""
        return None

    def check(self) -> None:
        """Return if the bucket answers."""
        self._bucket.head(f"{PREFIX}/check")

    def _find_missing(self, directory: Path, files: Sequence[FileEntry], watch: Watch) -> list[FileEntry]:
        """Return the files of a folder that are not objects yet, or old ones. Raises: ValueError, as `publish`."""
        watch.expect(sum(file.size_bytes for file in files))
        missing = []
        for file in files:
            watch.moved()
            source = directory / file.path
            size = source.stat().st_size if source.is_file() else None
            if size is not None and size != file.size_bytes:
                raise ValueError(f"{file.path!r}: found {size} bytes, expected {file.size_bytes}; not published")
            if self._has(file.sha256, file.size_bytes, watch, at_any_age=size is None):
                continue
            if size is None:
                raise ValueError(
                    f"{file.path!r}: found nothing, expected {file.size_bytes} bytes; it was not published"
                )
            missing.append(file)
        return missing

    def _has(self, sha256: str, size_bytes: int, watch: Watch, *, at_any_age: bool = False) -> bool:
        """Tell whether an object of this size is there, too young for a sweep; its bytes then count as moved."""
        found = self._bucket.head(object_key(sha256), watch=watch)
        if found is None or found["size"] != size_bytes:
            return False
        if not at_any_age and _age_seconds(found["last_modified"]) >= PUT_AGAIN_SECONDS:
            return False
        watch.moved(size_bytes)
        return True

    def _put_file(self, key: str, file: Path, watch: Watch) -> None:
        self._bucket.put_file(key, file, watch=watch)

    def _put(self, source: Path, sha256: str, watch: Watch, bring: Bring) -> None:
        size = source.stat().st_size
        bring(object_key(sha256), source, watch)
        stored = self._bucket.head(object_key(sha256), watch=watch)
        if stored is None or stored["size"] != size:
            raise Unavailable(f"The bucket {self._bucket.name!r} did not keep all of sha256:{sha256}; try again.")

    def _find_etag(self, file: FileEntry, watch: Watch) -> str | None:
        """Return the ETag of an object that has the size of its file."""
        found = self._bucket.head(object_key(file.sha256), watch=watch)
        if found is None:
            raise _gone(file)
        if found["size"] != file.size_bytes:
            detail = f"{file.path!r} has {found['size']} bytes in the bucket, expected {file.size_bytes}."
            raise ArtifactGone(f"{detail} Its bytes are damaged; make or register it again.")
        return found["e_tag"]

    def _read_range(self, file: FileEntry, one: FileRange, etag: str | None, watch: Watch) -> Iterator[bytes]:
        try:
            yield from self._bucket.read(object_key(file.sha256), one.begin, one.end, etag=etag, watch=watch)
        except FileNotFoundError:
            raise _gone(file) from None
        except ObjectChanged:
            detail = f"The object sha256:{file.sha256} was replaced while ranges of it were read"
            raise Unavailable(
                f"{detail}; nothing of ours does that. Look who writes into the bucket, then try again."
            ) from None

    def _download(self, file: FileEntry, watch: Watch) -> None:
        temp = self._cache.new_temp_path()
        try:
            found = self._bucket.download(object_key(file.sha256), file.size_bytes, temp, watch=watch)
            if found != file.sha256:
                detail = f"{file.path!r} has the digest sha256:{found} in the bucket, expected sha256:{file.sha256}."
                raise ArtifactGone(f"{detail} Its bytes are damaged; make or register it again.")
            self._cache.add(temp, file.sha256)
        except FileNotFoundError:
            raise _gone(file) from None
        finally:
            temp.unlink(missing_ok=True)


def _gone(file: FileEntry) -> ArtifactGone:
    return ArtifactGone(f"The bytes of {file.path!r} are not in the store any more; make it again.")


def _age_seconds(last_modified: datetime) -> float:
    return max(0.0, (datetime.now(UTC) - last_modified).total_seconds())
