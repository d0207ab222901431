"""Spools of patch files: the parts of each kind in a file of their own, one behind the other, while a merge runs.

At the end all lengths are known, and so is how each part is stored: indices that are too many become bits.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.domain.checkpoints import DTYPE_BYTES
from app.domain.patches import LARGEST_INT32
from workers import patches, surgery
from workers.checkpoints.reader import TORCH_DTYPES
from workers.patches import Packed, Part
from workers.sums import DENOMINATOR, NUMERATOR

SEPARATOR = "::"
BUFFER_BYTES = 1 << 20
TORCH: dict[str, torch.dtype] = {
    **TORCH_DTYPES, "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
    "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
DTYPES = {dtype: name for name, dtype in TORCH.items()}
ROLES = (
    patches.INDICES, patches.VALUES, patches.LEFT, patches.RIGHT, patches.SCALE, patches.MASK, patches.SIGNS,
    NUMERATOR, DENOMINATOR, surgery.DOWN, surgery.UP,
)  # fmt: skip


@dataclass(frozen=True, order=True)
class StreamKey:
    """Where the parts of one kind are spooled; streams are joined in this order, so that every tensor lies aligned."""

    narrowness: int  # minus the bytes of an element
    role: int
    narrowness_of_tensor: int  # minus those of the tensor patched: within one, tensors come in the order of names


@dataclass
class Growing:
    """A part of one tensor that is being spooled."""

    role: str
    dtype: str
    shape: tuple[int, ...] | None
    n_entries: int | None = None  # of indices: of the tensor
    n_bytes: int = 0

    def described(self, tensor: str) -> tuple[str, str, tuple[int, ...], int]:
        """Return it as a header lists it."""
        shape = self.shape if self.shape is not None else (self.n_bytes // DTYPE_BYTES[self.dtype],)
        return f"{tensor}{SEPARATOR}{self.role}", self.dtype, shape, self.n_bytes


@dataclass(frozen=True)
class Stored:
    """A part as the file holds it, and where it lies in a spool."""

    tensor: str
    part: Growing
    spool: Path
    begin: int
    spooled_bytes: int

    @property
    def content(self) -> Iterator[bytes]:
        """The bytes that the file holds, a buffer at a time."""
        spooled = _read_spool(self.spool, self.begin, self.spooled_bytes)
        return iter([_to_bits(spooled, self.part)]) if self.part.n_entries is not None else spooled


@dataclass(frozen=True)
class _WaitingBits:
    """Bits of a tensor that do not fill a byte yet."""

    tensor: str
    key: StreamKey
    bits: Packed


@dataclass
class Spool:
    """What has been spooled of one task."""

    folder: Path
    streams: dict[StreamKey, dict[str, Growing]] = field(default_factory=dict)
    waiting: _WaitingBits | None = None

    def path(self, key: StreamKey) -> Path:
        """Return where a stream lies."""
        return self.folder / f"{-key.narrowness}-{key.role}-{-key.narrowness_of_tensor}"

    def append(self, key: StreamKey, tensor: str, part: Part, content: memoryview | bytes) -> None:
        """Put bytes behind those that the tensor's part has so far."""
        stream = self.streams.setdefault(key, {})
        if tensor in stream and part.is_repeated:
            return
        dtype = DTYPES[part.content.dtype] if isinstance(part.content, Tensor) else "U8"
        stream.setdefault(tensor, Growing(part.role, dtype, part.shape, part.n_entries)).n_bytes += len(content)
        with self.path(key).open("ab") as file:
            file.write(content)

    def lay_out(self) -> list[Stored]:
        """Return all parts in the file's order; indices that take more room than bits become those."""
        laid_out: dict[StreamKey, list[Stored]] = {}
        for key in sorted(self.streams):
            begin = 0
            for tensor, part in self.streams[key].items():
                n_bytes = part.n_bytes
                in_bits = _as_bits(part)
                place = key if in_bits is None else replace(key, narrowness=-1, role=ROLES.index(patches.MASK))
                as_stored = in_bits or replace(part, n_entries=None)
                laid_out.setdefault(place, []).append(Stored(tensor, as_stored, self.path(key), begin, n_bytes))
                begin += n_bytes
        return [stored for key in sorted(laid_out) for stored in laid_out[key]]

    def append_bits(self, key: StreamKey, tensor: str, part: Part, bits: Packed) -> None:
        """Put bits behind those that the tensor's part has so far."""
        if self.waiting is not None and self.waiting.tensor == tensor:
            bits = _join_bits(self.waiting.bits, bits)
        else:
            self.flush_bits()
        n_whole = bits.n // 8
        self.append(key, tensor, part, bits.content[:n_whole].data)
        self.waiting = _WaitingBits(tensor, key, Packed(bits.content[n_whole:].copy(), bits.n % 8))

    def flush_bits(self) -> None:
        """Write the last byte of the tensor that came last."""
        waiting, self.waiting = self.waiting, None
        if waiting is not None and waiting.bits.n:
            self.streams[waiting.key][waiting.tensor].n_bytes += 1
            with self.path(waiting.key).open("ab") as file:
                file.write(waiting.bits.content.data)


def _as_bits(part: Growing) -> Growing | None:
    """Return the part that holds indices as bits, one for each entry of the tensor; None where it takes more room."""
    n_bytes = -(-(part.n_entries or 0) // 8)
    if part.n_entries is None or n_bytes >= part.n_bytes:
        return None
    return replace(part, role=patches.MASK, n_bytes=n_bytes, dtype="U8")


def _to_bits(spooled: Iterable[bytes], part: Growing) -> bytes:
    """Return the bits of indices that ascend. part: as `_as_bits` returns it."""
    packed = np.zeros(part.n_bytes, dtype=np.uint8)
    dtype = np.int64 if (part.n_entries or 0) > LARGEST_INT32 else np.int32  # as they are spooled
    for content in spooled:
        indices: NDArray[np.int64] = np.frombuffer(content, dtype=dtype).astype(np.int64)
        places = indices >> 3
        begins = np.flatnonzero(np.diff(places, prepend=-1))  # where another byte begins
        bits = np.left_shift(1, indices & 7).astype(np.uint8)
        packed[places[begins]] |= np.bitwise_or.reduceat(bits, begins)
    return packed.tobytes()


def _read_spool(path: Path, begin: int, n_bytes: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(begin)
        while n_bytes and (content := file.read(min(BUFFER_BYTES, n_bytes))):
            n_bytes -= len(content)
            yield content


def _join_bits(first: Packed, second: Packed) -> Packed:
    if first.n == 0:
        return second
    return patches.pack(
        np.concatenate([np.unpackbits(bits.content, count=bits.n, bitorder="little") for bits in (first, second)])
    )
