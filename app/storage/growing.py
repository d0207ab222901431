"""Files that go into a bucket while they are made.

A file's key is its digest, which is known last. So its bytes go, in parts, to a key of their own below `incoming/`, and
are copied within the bucket when the file is published. What does not come to that is aborted, or removed; after a
crash by the sweep.
"""

import contextlib
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from app.domain.checkpoints import FileEntry
from app.domain.errors import Unavailable
from app.storage.base import Watch
from app.storage.buckets import SINGLE_PUT_BYTES, Bucket, Outgoing, threads, wait_for

INCOMING = "incoming"
LARGEST_COPY_BYTES = 5 << 30  # S3 copies larger objects by parts only: they go up when they are complete
FILES_AT_ONCE = 2
Bring = Callable[[str, Path, Watch], None]
FindMissing = Callable[[Path, Sequence[FileEntry], Watch], Sequence[FileEntry]]
Put = Callable[[Path, str, Watch, Bring], None]
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Upload:
    """A file on its way."""

    key: str
    outgoing: Outgoing
    done: Future[None]


class GrowingFiles:
    """A base.Growing over a bucket.

    find_missing: returns the files that are not in the store yet; put: makes a file an object under its digest, by a
        function that brings it to a key.
    """

    def __init__(self, bucket: Bucket, directory: Path, find_missing: FindMissing, put: Put, watch: Watch) -> None:
        self._bucket = bucket
        self._directory = directory
        self._find_missing = find_missing
        self._put = put
        self._watch = watch
        self._pool = ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="bucket")
        self._uploads: dict[Path, _Upload] = {}

    def grew(self, path: str, n_bytes: int) -> None:
        """Hear that the first bytes of a file are as they will stay; the file has its final size already."""
        file = self._directory / path
        if file not in self._uploads:
            try:
                size = file.stat().st_size
            except FileNotFoundError:  # the merge has failed since it said so
                return
            if not SINGLE_PUT_BYTES < size <= LARGEST_COPY_BYTES:
                return
            outgoing, key = Outgoing(file, n_ready=0), f"{INCOMING}/{uuid.uuid4().hex}"
            self._uploads[file] = _Upload(key, outgoing, self._pool.submit(self._bucket.put, key, outgoing))
        self._uploads[file].outgoing.grow(n_bytes)

    def publish(self, files: Sequence[FileEntry]) -> None:
        """Make the files objects of the store; by now all of each is as it will stay.

        What is there already goes up no further.
        """
        missing = self._find_missing(self._directory, files, self._watch)
        wanted = {self._directory / file.path for file in missing}
        for path, upload in self._uploads.items():
            if path in wanted:
                upload.outgoing.grow(path.stat().st_size)
            else:
                upload.outgoing.stop()
        for file in missing:
            self._put(self._directory / file.path, file.sha256, self._watch, self._bring)

    def _bring(self, key: str, file: Path, watch: Watch) -> None:
        """Copy what has gone up to its key; put what has not."""
        upload = self._uploads.get(file)
        if upload is not None:
            try:
                wait_for(upload.done, watch, upload.outgoing.take)
                with threads(1) as pool:  # not ours, where other files wait for their turn
                    wait_for(pool.submit(self._bucket.copy, upload.key, key), watch)
            except Unavailable:
                log.warning("upload_begun_again", file=file.name)  # the bucket was away for too long
            else:
                return
        self._bucket.put_file(key, file, watch=watch)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop what is on its way, and remove what has come to lie below `incoming/`; parts are not waited for."""
        for upload in self._uploads.values():
            upload.outgoing.stop()
            upload.done.add_done_callback(partial(self._remove, upload.key))
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _remove(self, key: str, done: Future[None]) -> None:
        if not done.cancelled() and done.exception() is None:
            with contextlib.suppress(Unavailable):  # left to the sweep
                self._bucket.delete(key)
