"""Reads runs of a tensor's elements with pread into reused buffers; nothing is mapped, nothing is held.

A file that shrinks under a mapping kills the process; under pread it is an error that names the file.
"""

import os
import threading
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor

from app.domain.checkpoints import DTYPE_BYTES, LocalCheckpoint, TensorSpec
from app.domain.errors import InputChanged, JobInternal
from app.domain.needs import NOWHERE
from workers.checkpoints.finiteness import has_finite_bits
from workers.numerics import fused

TORCH_DTYPES: dict[str, torch.dtype] = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip


class FloatReader(Protocol):
    """What a merge reads from: a checkpoint's files, or an adapter on its base (adapters.py)."""

    checkpoint: LocalCheckpoint

    def read_floats(self, tensor: TensorSpec, offset: int, out: Tensor, *, is_judged: bool = True) -> bool:
        """Fill `out` with elements offset, offset + 1, … of the tensor, and tell whether all of them are finite."""

    def read_bytes(self, tensor: TensorSpec, offset: int, out: memoryview) -> None:
        """Fill `out` with the tensor's bytes from byte `offset` of the tensor on."""


class TensorReader:
    """The weight files of one checkpoint, open for reading; safe to share between threads."""

    def __init__(self, checkpoint: LocalCheckpoint) -> None:
        self.checkpoint = checkpoint
        self._descriptors: dict[str, int] = {}
        self._scratch = threading.local()
        try:
            for file in sorted({tensor.file for tensor in checkpoint.manifest.tensors} - {NOWHERE}):
                self._descriptors[file] = _open(checkpoint, file)
        except BaseException:
            self.close()
            raise

    def read_floats(self, tensor: TensorSpec, offset: int, out: Tensor, *, is_judged: bool = True) -> bool:
        """Fill `out` with elements offset, offset + 1, … of the tensor, and tell whether all of them are finite.

        out: [m] float32, contiguous, on the CPU. is_judged: False takes them for finite, as an earlier pass found them.
        Judged here, where the bytes still lie in the processor's cache.
        """
        if out.numel() == 0:
            return True
        item = DTYPE_BYTES[tensor.dtype]
        begin = tensor.begin + offset * item
        if tensor.dtype == "F32":
            self._read(tensor.file, begin, out.numpy().data.cast("B"))
            return not is_judged or has_finite_bits(out)
        raw = self._buffer(out.numel() * item)
        self._read(tensor.file, begin, raw.numpy().data.cast("B"))
        numbers = raw.view(TORCH_DTYPES[tensor.dtype])
        out.copy_(numbers)
        if not is_judged:
            return True
        return has_finite_bits(out if tensor.dtype == "F64" else numbers)  # float64 may overflow float32

    def read_rows(self, tensor: TensorSpec, offset: int, out: Tensor, *, stride: int) -> None:
        """Fill rows, `stride` elements of the tensor from one to the next, from element `offset` on; nothing is judged.

        out: [rows, length] float32, contiguous, on the CPU.
        """
        n_rows, length = out.shape
        if n_rows == 1 or stride == length:
            self.read_floats(tensor, offset, out.view(-1), is_judged=False)
            return
        item = DTYPE_BYTES[tensor.dtype]
        is_plain = tensor.dtype == "F32"
        raw = out.view(torch.uint8) if is_plain else self._buffer(out.numel() * item).view(n_rows, length * item)
        begin = tensor.begin + offset * item
        if not fused.read_rows(self._descriptors[tensor.file], begin, raw.numpy(), stride=stride * item):
            for row, place in enumerate(raw.numpy()):
                self._read(tensor.file, begin + row * stride * item, place.data)
        if not is_plain:
            out.copy_(raw.view(TORCH_DTYPES[tensor.dtype]))

    def descriptor(self, tensor: TensorSpec) -> int:
        """Return the descriptor of the file that holds the tensor, for readers of its bytes as they are."""
        return self._descriptor(tensor.file)

    def read_bytes(self, tensor: TensorSpec, offset: int, out: memoryview) -> None:
        """Fill `out` with the tensor's bytes from byte `offset` of the tensor on."""
        self._read(tensor.file, tensor.begin + offset, out)

    def close(self) -> None:
        """Close the files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, file: str, begin: int, out: memoryview) -> None:
        descriptor = self._descriptor(file)
        done = 0
        while done < len(out):
            n_bytes = os.preadv(descriptor, [out[done:]], begin + done)
            if n_bytes == 0:
                raise InputChanged(
                    f"{self.checkpoint.id}: {file} ends before byte {begin + len(out)}, expected it to be as long as "
                    "when it was registered; register the checkpoint again."
                )
            done += n_bytes

    def _descriptor(self, file: str) -> int:
        if file == NOWHERE:
            raise JobInternal(f"{self.checkpoint.id}: a tensor was read that was not fetched; report this fault.")
        return self._descriptors[file]

    def _buffer(self, n_bytes: int) -> Tensor:
        """Return this thread's scratch bytes; valid until its next call."""
        buffer: Tensor | None = getattr(self._scratch, "buffer", None)
        if buffer is None or buffer.numel() < n_bytes:
            buffer = torch.empty(n_bytes, dtype=torch.uint8)
            self._scratch.buffer = buffer
        return buffer[:n_bytes]


def path_of(checkpoint: LocalCheckpoint, file: str) -> Path:
    """Return where a file of the checkpoint lies; a checkpoint that is one bare file has its own path."""
    return checkpoint.path if checkpoint.path.is_file() else checkpoint.path / file


def _open(checkpoint: LocalCheckpoint, file: str) -> int:
    try:
        descriptor = os.open(path_of(checkpoint, file), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InputChanged(
            f"{checkpoint.id}: {file} is not there any more, expected it as registered; register the checkpoint again."
        ) from None
    expected = next((entry.size_bytes for entry in checkpoint.manifest.files if entry.path == file), None)
    found = os.fstat(descriptor).st_size
    if expected is not None and found != expected:
        os.close(descriptor)
        raise InputChanged(
            f"{checkpoint.id}: {file} has {found} bytes, expected {expected} as registered; register it again."
        )
    return descriptor
