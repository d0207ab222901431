"""sha256 of files and BLAKE3 of the tensors in them, from the same buffers: each byte is read once.

hashlib and blake3 let go of the interpreter's lock, so threads are enough.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from blake3 import blake3

from app.domain.checkpoints import TensorSpec
from app.domain.errors import InputChanged

BUFFER_BYTES = 1 << 20

OnBytes = Callable[[int], None]  # hears how many more bytes were hashed
Update = Callable[[memoryview], None]
Begin = Callable[[Update, memoryview], Future[None] | None]  # takes bytes, here (None) or meanwhile on another thread


@dataclass(frozen=True)
class HashedFile:
    """The digests of a file, in hex."""

    sha256: str
    blake3_of: dict[str, str]  # tensor -> of its bytes


def hash_file(path: Path, on_bytes: OnBytes) -> str:
    """Return the sha256 (hex) of a whole file."""
    return hash_weights(path, (), on_bytes).sha256


def hash_weights(path: Path, tensors: Sequence[TensorSpec], on_bytes: OnBytes) -> HashedFile:
    """Return the digests of a file and of its tensors, on the caller's thread.

    Raises: InputChanged when the file ends before a tensor does.
    """
    return _hash(path, tensors, on_bytes, lambda update, content: update(content))


def hash_all(
    files: Sequence[tuple[Path, Sequence[TensorSpec]]], on_bytes: OnBytes, *, threads: int
) -> list[HashedFile]:
    """Return the digests of files, each with its tensors, in their order; at most so many threads work at a time.

    A thread takes a file; where fewer files are left than there are threads, an idle one takes the tensors' half of it.
    Raises: InputChanged as hash_weights does.
    """
    with _Halves(threads) as halves, ThreadPoolExecutor(threads) as pool:
        found = [pool.submit(halves.hash, path, tensors, on_bytes) for path, tensors in files]
        return [future.result() for future in found]


class _Halves(AbstractContextManager["_Halves"]):
    """Threads for whole files, and for halves of them while there is one to spare."""

    def __init__(self, threads: int) -> None:
        self._spare = threading.Semaphore(threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="hash")

    def hash(self, path: Path, tensors: Sequence[TensorSpec], on_bytes: OnBytes) -> HashedFile:
        """Return the digests of a file."""
        with self._spare:
            return _hash(path, tensors, on_bytes, self._begin)

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._pool.shutdown()

    def _begin(self, update: Update, content: memoryview) -> Future[None] | None:
        if self._spare.acquire(blocking=False):
            return self._pool.submit(self._finish, update, content)
        update(content)
        return None

    def _finish(self, update: Update, content: memoryview) -> None:
        try:
            update(content)
        finally:
            self._spare.release()


def _hash(path: Path, tensors: Sequence[TensorSpec], on_bytes: OnBytes, begin: Begin) -> HashedFile:
    whole, of_tensors = hashlib.sha256(), _TensorDigests(tensors)
    buffer = memoryview(bytearray(BUFFER_BYTES))
    with path.open("rb", buffering=0) as stream:
        while n_bytes := stream.readinto(buffer):
            half = begin(of_tensors.update, buffer[:n_bytes]) if tensors else None
            whole.update(buffer[:n_bytes])
            if half is not None:
                half.result()
            on_bytes(n_bytes)
    return HashedFile(whole.hexdigest(), of_tensors.finish())


@dataclass
class _TensorDigests:
    """BLAKE3 of each tensor of a file, from the file's bytes in their order."""

    tensors: Sequence[TensorSpec]
    _left: deque[TensorSpec] = field(init=False)
    _digest: blake3 = field(default_factory=blake3, init=False)  # of the first that is left
    _position: int = field(default=0, init=False)
    _found: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._left = deque(sorted(self.tensors, key=lambda tensor: (tensor.begin, tensor.end)))

    def update(self, content: memoryview) -> None:
        """Take the next bytes."""
        begin, end = self._position, self._position + len(content)
        while self._left and self._left[0].begin <= end:
            tensor = self._left[0]
            self._digest.update(content[max(0, tensor.begin - begin) : tensor.end - begin])
            if tensor.end > end:
                break
            self._found[tensor.name] = self._digest.hexdigest()
            self._left.popleft()
            self._digest = blake3()
        self._position = end

    def finish(self) -> dict[str, str]:
        """Return the digests of all tensors. Raises: InputChanged."""
        if self._left:
            raise InputChanged(f"{self._left[0].file} became shorter while it was read; register it again.")
        return self._found
