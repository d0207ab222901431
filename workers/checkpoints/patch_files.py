"""Patch files: a safetensors file per task with the parts of its patches (docs/patches.md); written and read here.

How large a patch becomes is known at its end only. While a merge runs, the parts of each kind go to a file of their own
(a spool), one behind the other; then the header is known, and the spools are joined behind it. Memory is bounded by a
piece, and neither pieces nor shards nor threads show in the bytes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from app.domain.checkpoints import DTYPE_BYTES, FileEntry, LocalCheckpoint, TensorSpec
from app.domain.errors import InputChanged, InvalidHeader
from app.domain.headers import PREFIX_BYTES, make_header, parse_header, read_header_length
from app.domain.patches import PATCH_FORMAT, PATCH_FORMAT_VERSION
from workers import patches, surgery
from workers.checkpoints.parallel import map_in_order, n_cores
from workers.checkpoints.reader import TORCH_DTYPES, path_of
from workers.patches import Packed, Part
from workers.sums import DENOMINATOR, NUMERATOR
from workers.surgery import SurgeryModule

SEPARATOR = "::"
SPOOL_FOLDER = ".patches"
BUFFER_BYTES = 1 << 20
TORCH: dict[str, torch.dtype] = {
    **TORCH_DTYPES, "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
    "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
DTYPES = {dtype: name for name, dtype in TORCH.items()}
_ROLES = (
    patches.INDICES, patches.VALUES, patches.LEFT, patches.RIGHT, patches.SCALE, patches.MASK, patches.SIGNS,
    NUMERATOR, DENOMINATOR, surgery.DOWN, surgery.UP,
)  # fmt: skip
WEIGHTLESS = (patches.INDICES, patches.MASK, patches.SIGNS)  # what holds no weights, as papers count


@dataclass(frozen=True, order=True)
class _StreamKey:
    """Where the parts of one kind are spooled; streams are joined in this order, so that every tensor lies aligned."""

    narrowness: int  # minus the bytes of an element
    role: int
    narrowness_of_tensor: int  # minus those of the tensor patched: within one, tensors come in the order of names


@dataclass
class _Growing:
    """A part of one tensor that is being spooled."""

    role: str
    dtype: str
    shape: tuple[int, ...] | None
    n_bytes: int = 0

    def described(self, tensor: str) -> tuple[str, str, tuple[int, ...], int]:
        """Return it as a header lists it."""
        shape = self.shape if self.shape is not None else (self.n_bytes // DTYPE_BYTES[self.dtype],)
        return f"{tensor}{SEPARATOR}{self.role}", self.dtype, shape, self.n_bytes


@dataclass(frozen=True)
class _WaitingBits:
    """Bits of a tensor that do not fill a byte yet."""

    tensor: str
    key: _StreamKey
    bits: Packed


@dataclass
class _Spool:
    """What has been spooled of one task."""

    folder: Path
    streams: dict[_StreamKey, dict[str, _Growing]] = field(default_factory=dict)
    waiting: _WaitingBits | None = None

    def path(self, key: _StreamKey) -> Path:
        """Return where a stream lies."""
        return self.folder / f"{-key.narrowness}-{key.role}-{-key.narrowness_of_tensor}"

    def append(self, key: _StreamKey, tensor: str, part: Part, content: memoryview | bytes) -> None:
        """Put bytes behind those that the tensor's part has so far."""
        stream = self.streams.setdefault(key, {})
        if tensor in stream and part.is_repeated:
            return
        dtype = DTYPES[part.content.dtype] if isinstance(part.content, Tensor) else "U8"
        stream.setdefault(tensor, _Growing(part.role, dtype, part.shape)).n_bytes += len(content)
        with self.path(key).open("ab") as file:
            file.write(content)

    def append_bits(self, key: _StreamKey, tensor: str, part: Part, bits: Packed) -> None:
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


@dataclass(frozen=True)
class PatchFile:
    """A file to be written: its path within the artifact, and what its metadata says of it alone."""

    path: str
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class WrittenPatch:
    """A finished patch file; `n_values` counts the numbers in it that are weights, not indices or bits."""

    entry: FileEntry
    n_values: int


class PatchWriter:
    """Takes the parts of all files, tensors and pieces in the plan's order, and writes the files at the end."""

    def __init__(self, output: Path, files: Sequence[PatchFile]) -> None:
        self._output = output
        self._files = tuple(files)
        self._root = output / SPOOL_FOLDER
        self._begun: list[Path] = []
        self._spools = [_Spool(self._root / str(index)) for index in range(len(files))]
        for spool in self._spools:
            spool.folder.mkdir(parents=True)

    def write(self, file: int, tensor: str, dtype: str, parts: Sequence[Part]) -> None:
        """Spool the next parts of a tensor's patch. dtype: the tensor's, as safetensors names it."""
        spool = self._spools[file]
        for part in parts:
            content = part.content
            width = content.itemsize if isinstance(content, Tensor) else 1
            key = _StreamKey(-width, _ROLES.index(part.role), -DTYPE_BYTES[dtype])
            if isinstance(content, Tensor):
                spool.append(key, tensor, part, bytes_of(content))
            else:
                spool.append_bits(key, tensor, part, content)

    def finish(self, metadata: Mapping[str, str]) -> list[WrittenPatch]:
        """Join every file, in the order given, and return them; all bytes are on the disk. metadata: of all of them."""
        numbers = range(len(self._files))
        written = list(map_in_order(lambda index: self._join(index, metadata), numbers, threads=n_cores()))
        shutil.rmtree(self._root)
        return written

    def abandon(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self._root, ignore_errors=True)
        for path in self._begun:
            path.unlink(missing_ok=True)

    def _join(self, index: int, metadata: Mapping[str, str]) -> WrittenPatch:
        planned, spool = self._files[index], self._spools[index]
        spool.flush_bits()
        streams = sorted(spool.streams)
        grown = [(tensor, growing) for key in streams for tensor, growing in spool.streams[key].items()]
        version = PATCH_FORMAT_VERSION if any(growing.role == surgery.UP for _, growing in grown) else 1
        header = make_header(
            [growing.described(tensor) for tensor, growing in grown],
            {"format": PATCH_FORMAT, "version": str(version), **metadata, **planned.metadata},
        )
        path = self._output / planned.path
        path.parent.mkdir(exist_ok=True)
        digest = hashlib.sha256(header)
        with path.open("xb") as file:
            self._begun.append(path)
            file.write(header)
            for content in (content for key in streams for content in _drain(spool.path(key))):
                digest.update(content)
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
            entry = FileEntry(path=planned.path, size_bytes=file.tell(), sha256=digest.hexdigest())
        values = [growing for _, growing in grown if growing.role not in WEIGHTLESS]
        return WrittenPatch(entry, sum(part.n_bytes // DTYPE_BYTES[part.dtype] for part in values))


class PatchReader:
    """One task's patch file, open for reading."""

    def __init__(self, checkpoint: LocalCheckpoint, file: str) -> None:
        self._path = path_of(checkpoint, file)
        self._parts: dict[str, dict[str, TensorSpec]] = {}
        self.metadata, tensors = read_patch_header(self._path, file)
        for spec in tensors:
            tensor, _, role = spec.name.rpartition(SEPARATOR)
            self._parts.setdefault(tensor, {})[role] = spec

    @property
    def tensors(self) -> frozenset[str]:
        """The names of the tensors that the patch changes."""
        return frozenset(name for name, parts in self._parts.items() if surgery.UP not in parts)

    def modules(self) -> dict[str, SurgeryModule]:
        """Return the surgery modules by place. Raises: InputChanged when the file ends before they do."""
        places = sorted(name for name, parts in self._parts.items() if surgery.UP in parts)
        found = {place: self.parts(place) for place in places}
        return {place: SurgeryModule(parts[surgery.DOWN], parts[surgery.UP]) for place, parts in found.items()}

    def parts(self, tensor: str) -> dict[str, Tensor]:
        """Return the parts of a tensor's patch by role; none where the patch does not change it.

        Raises: InputChanged when the file ends before they do.
        """
        with self._path.open("rb") as file:
            return {role: read_part(file.fileno(), spec) for role, spec in self._parts.get(tensor, {}).items()}


def read_patch_header(
    path: Path, file: str, expected: tuple[str, int] = (PATCH_FORMAT, PATCH_FORMAT_VERSION)
) -> tuple[dict[str, str], list[TensorSpec]]:
    """Return the metadata and the tensors of a patch file, or of a file of another format (name, last version) of ours.

    file: its path within its checkpoint.
    Raises: InputChanged when it is not there; InvalidHeader when it is none of ours, or of a later version.
    """
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = read_header_length(stream.read(PREFIX_BYTES), file=file, file_size=size)
            header = stream.read(length)
    except FileNotFoundError:
        raise InputChanged(f"{file} is not there any more; make the artifact again.") from None
    tensors = parse_header(header, file=file, file_size=size)
    metadata = json.loads(header).get("__metadata__", {})
    known = [str(version + 1) for version in range(expected[1])]
    if metadata.get("format") != expected[0] or metadata.get("version") not in known:
        raise InvalidHeader(
            f"{file}: found format {metadata.get('format')!r} version {metadata.get('version')!r}, expected "
            f"{expected[0]!r} version {' or '.join(known)}; use the release that wrote it."
        )
    return metadata, tensors


def read_part(descriptor: int, spec: TensorSpec) -> Tensor:
    """Return a part as an open file holds it. Raises: InputChanged when the file ends before it does."""
    content = bytearray(spec.size_bytes)
    view, position = memoryview(content), spec.begin
    while view:
        n_bytes = os.preadv(descriptor, [view], position)
        if n_bytes == 0:
            raise InputChanged(f"{spec.file} became shorter while it was read; make the artifact again.")
        view, position = view[n_bytes:], position + n_bytes
    if not content:
        return torch.empty(spec.shape, dtype=TORCH[spec.dtype])
    return torch.frombuffer(content, dtype=TORCH[spec.dtype]).view(spec.shape)


def bytes_of(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes, which are the tensor's own. tensor: contiguous, on the CPU."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data) if tensor.numel() else memoryview(b"")


def _join_bits(first: Packed, second: Packed) -> Packed:
    if first.n == 0:
        return second
    return patches.pack(
        np.concatenate([np.unpackbits(bits.content, count=bits.n, bitorder="little") for bits in (first, second)])
    )


def _drain(path: Path) -> Iterator[bytes]:
    """Yield a spooled stream's bytes, then remove it."""
    with path.open("rb") as file:
        while content := file.read(BUFFER_BYTES):
            yield content
    path.unlink()
