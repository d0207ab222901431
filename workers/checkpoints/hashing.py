"""sha256 of files and BLAKE3 of single tensors, streamed through one buffer per thread; hashlib lets go of the lock."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from blake3 import blake3

from app.domain.checkpoints import TensorSpec
from app.domain.errors import InputChanged

BUFFER_BYTES = 1 << 20


def hash_file(path: Path, on_bytes: Callable[[int], None]) -> str:
    """Return the sha256 (hex) of a whole file; `on_bytes` hears how many more bytes were hashed."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(BUFFER_BYTES))
    with path.open("rb", buffering=0) as stream:
        while n_bytes := stream.readinto(buffer):
            digest.update(buffer[:n_bytes])
            on_bytes(n_bytes)
    return digest.hexdigest()


def hash_tensors(path: Path, tensors: Sequence[TensorSpec], on_bytes: Callable[[int], None]) -> dict[str, str]:
    """Return tensor name -> BLAKE3 (hex) of its bytes, for tensors of one file.

    Raises: InputChanged when the file ends before a tensor does.
    """
    buffer = memoryview(bytearray(BUFFER_BYTES))
    digests: dict[str, str] = {}
    with path.open("rb", buffering=0) as stream:
        for tensor in tensors:
            digest = blake3()
            position = tensor.begin
            while position < tensor.end:
                n_bytes = os.preadv(stream.fileno(), [buffer[: tensor.end - position]], position)
                if n_bytes == 0:
                    raise InputChanged(f"{tensor.file} became shorter while it was read; register it again.")
                digest.update(buffer[:n_bytes])
                position += n_bytes
                on_bytes(n_bytes)
            digests[tensor.name] = digest.hexdigest()
    return digests
