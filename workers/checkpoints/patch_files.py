"""Patch files: a safetensors file per task with the parts of its patches (docs/patches.md); written and read here.

How large a patch becomes is known at its end only. While a merge runs, the parts of each kind go to a file of their own
(a spool), one behind the other; then the header is known, and the spools are joined behind it. Memory is bounded by a
piece, and neither pieces nor shards nor threads show in the bytes. Indices that are too many become bits on the way.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from app.domain.checkpoints import DTYPE_BYTES, FileEntry, LocalCheckpoint, TensorSpec
from app.domain.errors import InputChanged, InvalidHeader
from app.domain.headers import PREFIX_BYTES, make_header, parse_header, read_header_length
from app.domain.patches import JOINED_AT_ONCE, PATCH_FORMAT, PATCH_FORMAT_VERSION
from workers import patches, surgery
from workers.checkpoints.parallel import map_in_order
from workers.checkpoints.patch_spools import ROLES, SEPARATOR, TORCH, Spool, Stored, StreamKey
from workers.checkpoints.reader import path_of
from workers.patches import Part
from workers.surgery import SurgeryModule

SPOOL_FOLDER = ".patches"
WEIGHTLESS = (patches.INDICES, patches.MASK, patches.SIGNS)  # what holds no weights, as papers count


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
        self._spools = [Spool(self._root / str(index)) for index in range(len(files))]
        for spool in self._spools:
            spool.folder.mkdir(parents=True)

    def write(self, file: int, tensor: str, dtype: str, parts: Sequence[Part]) -> None:
        """Spool the next parts of a tensor's patch. dtype: the tensor's, as safetensors names it."""
        spool = self._spools[file]
        for part in parts:
            content = part.content
            width = content.itemsize if isinstance(content, Tensor) else 1
            key = StreamKey(-width, ROLES.index(part.role), -DTYPE_BYTES[dtype])
            if isinstance(content, Tensor):
                spool.append(key, tensor, part, bytes_of(content))
            else:
                spool.append_bits(key, tensor, part, content)

    def finish(self, metadata: Mapping[str, str]) -> list[WrittenPatch]:
        """Join every file, in the order given, and return them; all bytes are on the disk. metadata: of all of them."""
        numbers = range(len(self._files))
        written = list(map_in_order(lambda index: self._join(index, metadata), numbers, threads=JOINED_AT_ONCE))
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
        parts = spool.lay_out()
        header = make_header(
            [stored.part.described(stored.tensor) for stored in parts],
            {"format": PATCH_FORMAT, "version": str(_version_of(parts)), **metadata, **planned.metadata},
        )
        path = self._output / planned.path
        path.parent.mkdir(exist_ok=True)
        digest = hashlib.sha256(header)
        with path.open("xb") as file:
            self._begun.append(path)
            file.write(header)
            for content in (content for stored in parts for content in stored.content):
                digest.update(content)
                file.write(content)
            entry = FileEntry(path=planned.path, size_bytes=file.tell(), sha256=digest.hexdigest())
        shutil.rmtree(spool.folder)
        values = [stored.part for stored in parts if stored.part.role not in WEIGHTLESS]
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

    def specs(self, tensor: str) -> Mapping[str, TensorSpec]:
        """Return where the parts of a tensor's patch lie in the file, by role; none where it does not change it."""
        return self._parts.get(tensor, {})

    def open(self) -> BinaryIO:
        """Open the file."""
        return self._path.open("rb")

    def modules(self) -> dict[str, SurgeryModule]:
        """Return the surgery modules by place. Raises: InputChanged when the file ends before they do."""
        places = sorted(name for name, parts in self._parts.items() if surgery.UP in parts)
        found = {place: self.parts(place) for place in places}
        return {place: SurgeryModule(parts[surgery.DOWN], parts[surgery.UP]) for place, parts in found.items()}

    def parts(self, tensor: str) -> dict[str, Tensor]:
        """Return the parts of a tensor's patch by role; none where the patch does not change it.

        Raises: InputChanged when the file ends before they do.
        """
        with self.open() as file:
            return {role: read_part(file.fileno(), spec) for role, spec in self.specs(tensor).items()}


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


def _version_of(parts: Sequence[Stored]) -> int:
    """Return the first version of the format that has these parts."""
    of_tensors: dict[str, set[str]] = {}
    for stored in parts:
        of_tensors.setdefault(stored.tensor, set()).add(stored.part.role)
    if any(roles == {patches.MASK, patches.VALUES} for roles in of_tensors.values()):
        return 3
    return 2 if any(surgery.UP in roles for roles in of_tensors.values()) else 1
