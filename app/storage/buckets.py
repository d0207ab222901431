"""One S3-compatible bucket through obstore: credentials and endpoint from the usual AWS variables, errors as ours.

Downloads run in ranges, a few at a time, so that no single request lasts long and memory stays bounded.
"""

import contextlib
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import S3Store

from app.domain.errors import Unavailable, UriNotAllowed
from app.storage.base import CHUNK_BYTES, UNWATCHED, Watch

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta

RANGE_BYTES = 16 << 20
PARALLEL_RANGES = 4
PART_BYTES = 16 << 20
SINGLE_PUT_BYTES = 8 << 20
PATIENCE_SECONDS = 1.0  # of who answers a caller
WORKER_PATIENCE_SECONDS = 60.0  # of who would lose an attempt of a job
MAX_RETRIES = 100  # the time is what ends them
REQUEST_SECONDS = 30.0  # that one request may take
COPY_SECONDS = 900.0  # and one that has the bucket copy gigabytes
LOOK_SECONDS = 0.2  # between looks at the watch while the network is waited for
Result = TypeVar("Result")
_INSTANCE_METADATA = "169.254.169.254"  # asked for credentials last, where nothing else names any


class BucketMissing(Unavailable):
    """There is no bucket of that name."""


class BucketForbidden(Unavailable):
    """Our credentials, or the lack of them, do not open the bucket."""


class ObjectChanged(Exception):
    """The object is no longer the one with this ETag."""


class PutStopped(Exception):
    """What was being put is not wanted any more; its parts are removed."""


class Bucket:
    """A bucket, or what lies under a prefix of it; keys are relative to the prefix.

    patience_seconds: how long a request is repeated while the bucket is away.
    """

    def __init__(self, name: str, prefix: str = "", *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.name = name
        self.prefix = prefix
        self._patience_seconds = patience_seconds
        self._store = self._open(REQUEST_SECONDS)

    def _open(self, request_seconds: float) -> S3Store:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        return S3Store(
            self.name,
            prefix=self.prefix or None,
            config={"endpoint": endpoint} if endpoint else {},
            client_options={
                "allow_http": endpoint.startswith("http:"),
                "connect_timeout": timedelta(seconds=3),
                "timeout": timedelta(seconds=request_seconds),
            },
            retry_config={
                "max_retries": MAX_RETRIES if self._patience_seconds > PATIENCE_SECONDS else 3,
                "retry_timeout": timedelta(seconds=max(request_seconds, self._patience_seconds)),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=2),
                    "base": 2,
                },
            },
        )

    def head(self, key: str, *, watch: Watch = UNWATCHED) -> "ObjectMeta | None":
        """Return size, ETag and time of an object, or None. Raises: Unavailable; what the watch raises, at once."""
        with threads(1) as pool:
            return wait_for(pool.submit(self._head, key), watch)

    def list_objects(self, prefix: str = "") -> "Iterator[ObjectMeta]":
        """Yield every object below a prefix (whole path segments)."""
        with _translated(self.name):
            for chunk in obstore.list(self._store, prefix=prefix or None):
                yield from chunk

    def put_file(self, key: str, file: Path, *, watch: Watch = UNWATCHED) -> None:
        """Store a file; large ones in parts. Content-addressed keys make an overwrite harmless.

        Raises: Unavailable; what the watch raises, at once: what is on its way then ends in a thread of its own.
        """
        outgoing = Outgoing(file)
        with threads(1) as pool:
            try:
                wait_for(pool.submit(self.put, key, outgoing), watch, outgoing.take)
            finally:
                outgoing.stop()

    def put(self, key: str, outgoing: "Outgoing") -> None:
        """Store a file on its way, on the caller's thread; large ones in parts, of which a failed put leaves none.

        Raises: Unavailable; PutStopped.
        """
        is_large = outgoing.file.stat().st_size > SINGLE_PUT_BYTES
        data = outgoing.read() if is_large else b"".join(outgoing.read())
        with _translated(self.name):
            try:
                obstore.put(
                    self._store,
                    key,
                    data,
                    use_multipart=is_large,
                    chunk_size=PART_BYTES,
                    max_concurrency=PARALLEL_RANGES,
                )
            except FileNotFoundError:  # somebody has aborted it
                raise Unavailable(f"The upload of {key!r} into {self.name!r} is gone; try again.") from None

    def copy(self, key: str, to: str) -> None:
        """Copy an object of at most 5 GiB within the bucket. Raises: Unavailable, also where the object is gone."""
        with _translated(self.name):
            try:
                obstore.copy(self._open(COPY_SECONDS), key, to)
            except FileNotFoundError:
                raise Unavailable(f"{key!r} is not in the bucket {self.name!r} any more; try again.") from None

    def read(
        self, key: str, start: int, end: int, *, etag: str | None = None, watch: Watch = UNWATCHED
    ) -> Iterator[bytes]:
        """Yield the bytes [start, end) of an object; whoever takes them counts them.

        Raises: FileNotFoundError; ObjectChanged when it does not have this ETag any more; Unavailable; what the watch
            raises.
        """
        spans = iter([(at, min(at + RANGE_BYTES, end)) for at in range(start, end, RANGE_BYTES)])
        with threads(PARALLEL_RANGES) as pool:
            pending = deque(pool.submit(self._read_range, key, span, etag) for span in islice(spans, PARALLEL_RANGES))
            while pending:
                data = wait_for(pending.popleft(), watch)  # forgotten once yielded: an object may outgrow the memory
                if (span := next(spans, None)) is not None:
                    pending.append(pool.submit(self._read_range, key, span, etag))
                yield data

    def download(
        self, key: str, size_bytes: int, target: Path, *, etag: str | None = None, watch: Watch = UNWATCHED
    ) -> str:
        """Write an object of this size into a file, synced, and return the sha256 of its bytes. Raises as `read`."""
        digest = hashlib.sha256()
        with target.open("wb") as file:
            for data in self.read(key, 0, size_bytes, etag=etag, watch=watch):
                file.write(data)
                digest.update(data)
                watch.moved(len(data))
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()

    def delete(self, key: str) -> None:
        """Delete an object; one that is not there is no fault."""
        with _translated(self.name), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, key)

    def _head(self, key: str) -> "ObjectMeta | None":
        with _translated(self.name):
            try:
                return obstore.head(self._store, key)
            except FileNotFoundError:
                return None

    def _read_range(self, key: str, span: tuple[int, int], etag: str | None) -> bytes:
        with _translated(self.name):
            try:
                options: GetOptions = {"range": span} if etag is None else {"range": span, "if_match": etag}
                return bytes(obstore.get(self._store, key, options=options).bytes())
            except PreconditionError:
                raise ObjectChanged(key) from None


class Outgoing:
    """A file's bytes as they leave, counted for another thread, which may stop them, or say how far they are ready."""

    def __init__(self, file: Path, *, n_ready: int | None = None) -> None:
        self.file = file
        self._n_ready = file.stat().st_size if n_ready is None else n_ready
        self._is_stopped = False
        self._changed = threading.Condition()
        self._n_bytes = self._n_taken = 0

    def grow(self, n_ready: int) -> None:
        """Let the first bytes of the file leave."""
        with self._changed:
            self._n_ready = max(self._n_ready, n_ready)
            self._changed.notify_all()

    def stop(self) -> None:
        """Let no more bytes leave."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def read(self) -> Iterator[bytes]:
        """Yield the bytes as they become ready. Raises: PutStopped."""
        with self.file.open("rb", buffering=0) as file:  # a buffer would read ahead, what is not ready yet
            size = os.fstat(file.fileno()).st_size
            while self._n_bytes < size:
                n_ready = self._wait()
                data = file.read(min(CHUNK_BYTES, n_ready - self._n_bytes))
                if not data:
                    raise PutStopped(f"{self.file.name} became shorter")
                self._n_bytes += len(data)
                yield data

    def take(self) -> int:
        """Return how many bytes left since the last call."""
        n_bytes = self._n_bytes
        self._n_taken, before = n_bytes, self._n_taken
        return n_bytes - before

    def _wait(self) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or self._n_ready > self._n_bytes)
            if self._is_stopped:
                raise PutStopped(self.file.name)
            return self._n_ready


@contextlib.contextmanager
def threads(n: int) -> Iterator[ThreadPoolExecutor]:
    """Give threads that are not waited for: what they still do when they are left, nobody needs."""
    pool = ThreadPoolExecutor(n, thread_name_prefix="bucket")
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def wait_for(future: Future[Result], watch: Watch, count: Callable[[], int] = lambda: 0) -> Result:
    """Return what a thread gives; meanwhile the watch is told, and may end the waiting. `count`: bytes since asked."""
    while not wait([future], LOOK_SECONDS).done:
        watch.moved(count())
    watch.moved(count())
    return future.result()


@contextlib.contextmanager
def _translated(bucket: str) -> Iterator[None]:
    try:
        yield
    except BaseError as error:
        if "NoSuchBucket" in str(error):
            raise BucketMissing(
                f"There is no bucket {bucket!r} where AWS_ENDPOINT_URL leads. Make it first."
            ) from error
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or _INSTANCE_METADATA in str(error):
            raise BucketForbidden(
                f"The service's credentials do not open the bucket {bucket!r}. Set AWS_ACCESS_KEY_ID and"
                " AWS_SECRET_ACCESS_KEY in its environment, or let them read it."
            ) from error
        detail = (
            f"The bucket {bucket!r} cannot be used ({type(error).__name__}). Look at AWS_ENDPOINT_URL, AWS_REGION and"
            " the credentials in the service's environment; then try again."
        )
        raise Unavailable(detail) from error
    except ValueError:
        raise UriNotAllowed("The key holds what no object's key holds; look at its spelling.") from None
