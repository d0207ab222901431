"""Writes base.safetensors, the base model that masks lie over: laid out before the merge, filled while it runs.

It is a patch file like the others (docs/patches.md), but it is known from the start what it holds and how long the
digest in its header is going to be: every run goes to its place at once, and is on its way to the disk while others are
merged. Only the digest of the file has to wait, since the header comes first.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from app.domain.checkpoints import DTYPE_BYTES, FileEntry
from app.domain.errors import JobInternal
from app.domain.headers import make_header
from app.domain.patches import BASE_FILE, PATCH_FORMAT
from app.domain.plans import PlannedTensor
from workers import patches
from workers.checkpoints.hashing import hash_file
from workers.checkpoints.patch_files import bytes_of
from workers.checkpoints.patch_spools import SEPARATOR
from workers.checkpoints.writeback import start_writeback

DIGEST = "0" * 64  # as long as any weights digest


class BaseFile:
    """Takes the base's numbers, the runs of each tensor from any thread, in any order.

    planned: the result's tensors; metadata: what the header says beside format and digest.
    """

    def __init__(self, output: Path, planned: Sequence[PlannedTensor], metadata: Mapping[str, str]) -> None:
        merged = [one for one in planned if one.copied_because is None and one.end > one.begin]
        self._metadata = metadata
        self._tensors = sorted(merged, key=lambda one: -DTYPE_BYTES[one.dtype])  # stable: as any patch file has them
        self._path = output / BASE_FILE
        self._header_bytes = len(self._header(DIGEST))
        self._places: dict[str, int] = {}
        place = self._header_bytes
        for one in self._tensors:
            self._places[one.name], place = place, place + one.end - one.begin
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def place(self, tensor: str, offset: int, numbers: Tensor) -> None:
        """Write a run of a tensor, in its stored dtype, from byte `offset` of the tensor on."""
        content, begin = bytes_of(numbers), self._places[tensor] + offset
        self._put(content, begin)
        start_writeback(self._file, begin, len(content))

    def finish(self, weights_digest: str) -> FileEntry:
        """Write the header, and return the file. weights_digest: of what is shared."""
        header = self._header(weights_digest)
        if len(header) != self._header_bytes:
            raise JobInternal(f"the weights digest {weights_digest!r} has not {len(DIGEST)} digits; report this fault.")
        self._put(memoryview(header), 0)
        digest = hash_file(self._path, lambda _: None)
        size_bytes = os.fstat(self._file).st_size
        self._close()
        return FileEntry(path=BASE_FILE, size_bytes=size_bytes, sha256=digest)

    def abandon(self) -> None:
        """Remove what was written."""
        self._close()
        self._path.unlink(missing_ok=True)

    def _header(self, weights_digest: str) -> bytes:
        parts = [
            (f"{one.name}{SEPARATOR}{patches.VALUES}", one.dtype, one.shape, one.end - one.begin)
            for one in self._tensors
        ]
        about = {"format": PATCH_FORMAT, "version": "1", "applies_to": weights_digest}
        return make_header(parts, {**about, **self._metadata})

    def _put(self, content: memoryview, position: int) -> None:
        while content:
            n_bytes = os.pwrite(self._file, content, position)
            content, position = content[n_bytes:], position + n_bytes

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
