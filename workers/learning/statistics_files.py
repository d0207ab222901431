"""Statistics of each model as files in the model's own tensor names: written while learning, read while merging.

One model's statistics are in memory while they are counted; then they lie on the disk, whatever the number of models.
"""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor

from app.domain.checkpoints import CheckpointKind, FileEntry, LocalCheckpoint, Manifest, TensorSpec
from app.domain.errors import IncompatibleCheckpoints, JobInternal
from app.domain.headers import make_header
from app.domain.statistics_files import FOLDER
from workers import patches
from workers.checkpoints import files, hashing
from workers.checkpoints.reader import TensorReader, path_of

FORMAT = "amalgam-statistics"
FORMAT_VERSION = 1
MASK = "mask"  # the kind of files that hold bits
RUN_ELEMENTS = 1 << 20  # that are read at a time


class StatisticsFile:
    """One model's statistics: float32 tensors by name, or masks in bits, open for reading from any thread."""

    def __init__(self, checkpoint: LocalCheckpoint, path: str) -> None:
        tensors = files.read_header(path_of(checkpoint, path), name=path)
        dtype = "U8" if path.startswith(f"{FOLDER}/{MASK}-") else "F32"
        other = next((tensor for tensor in tensors if tensor.dtype != dtype), None)
        if other is not None:
            what = "statistics in float32" if dtype == "F32" else "masks in bits, eight to a byte"
            raise IncompatibleCheckpoints(
                f"{checkpoint.id}: tensor {other.name!r} of {path} is {other.dtype}, expected {dtype}; write {what}."
            )
        held = checkpoint.manifest.model_copy(update={"tensors": tuple(tensors)})
        self.path = path
        self.tensors: Mapping[str, TensorSpec] = {tensor.name: tensor for tensor in tensors}
        self._reader = TensorReader(checkpoint.model_copy(update={"manifest": held}))

    def read(self, name: str, offset: int = 0, n_elements: int | None = None) -> Tensor:
        """Return elements of a tensor, [m] float32; default: all of them."""
        spec = self.tensors[name]
        out = torch.empty(spec.n_elements if n_elements is None else n_elements)
        self._reader.read_floats(spec, offset, out, is_judged=False)
        return out

    def read_bits(self, name: str, offset: int, n_elements: int) -> Tensor:
        """Return bits of a mask, [n_elements] bool; the first is the lowest of the first byte."""
        first, skipped = divmod(offset, 8)
        packed = torch.empty(-(-(skipped + n_elements) // 8), dtype=torch.uint8)
        self._reader.read_bytes(self.tensors[name], first, packed.numpy().data)
        return patches.unpack(packed, skipped + n_elements)[skipped:]

    @cached_property
    def norm(self) -> float:
        """Euclidean length of all tensors as one vector, summed in float64."""
        squares = (
            self.read(name, at, min(RUN_ELEMENTS, spec.n_elements - at)).double().square_().sum().item()
            for name, spec in sorted(self.tensors.items())
            for at in range(0, spec.n_elements, RUN_ELEMENTS)
        )
        return math.sqrt(math.fsum(squares))

    def close(self) -> None:
        """Close the file."""
        self._reader.close()


class StatisticsOfModels:
    """The statistics of all models of a merge; satisfies learning_contract.Learned."""

    def __init__(
        self,
        of_model: Sequence[StatisticsFile],
        *,
        new_in: Path | None = None,
        told: Mapping[str, JsonValue] | None = None,
    ) -> None:
        """of_model: in the models' order. new_in: the folder in which they were written; None: they are of others.

        told: what else is worth knowing of how they were measured.
        """
        self.of_model = of_model
        self._new_in = new_in
        self._told = told or {}

    def report(self) -> dict[str, JsonValue]:
        """Return the files."""
        paths: list[JsonValue] = [one.path for one in self.of_model]
        n_tensors = len({name for one in self.of_model for name in one.tensors})
        return {"files": paths, "n_tensors": n_tensors, **self._told}

    def link_to(self, folder: Path) -> "StatisticsOfModels":
        """Return the same statistics, new in another folder, to which the new files are linked."""
        linked: dict[str, StatisticsFile] = {}
        for path in dict.fromkeys(one.path for one in self.of_model):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(self._new_file(path), target)
            linked[path] = _open(folder, path)
        return StatisticsOfModels([linked[one.path] for one in self.of_model], new_in=folder, told=self._told)

    def close(self) -> None:
        """Close the files."""
        for one in self.of_model:
            one.close()

    def remove(self) -> None:
        """Remove the new files."""
        for path in {one.path for one in self.of_model}:
            self._new_file(path).unlink()

    def write(self, folder: Path) -> Sequence[FileEntry]:
        """Move new files into the artifact's folder."""
        self.close()
        entries: list[FileEntry] = []
        for one in {one.path: one for one in self.of_model}.values():
            if self._new_in is not None:
                target = folder / one.path
                target.parent.mkdir(exist_ok=True)
                (self._new_in / one.path).replace(target)
                sha256 = hashing.hash_file(target, lambda _: None)
                entries.append(FileEntry(path=one.path, size_bytes=target.stat().st_size, sha256=sha256))
        return entries

    def _new_file(self, path: str) -> Path:
        if self._new_in is None:
            raise JobInternal(f"{path} belongs to an earlier result and cannot be kept; report this fault.")
        return self._new_in / path


def write_statistics(scratch: Path, path: str, tensors: Mapping[str, Tensor]) -> StatisticsFile:
    """Write statistics as a safetensors file at `path` below `scratch`, and open it.

    tensors: by name; written as float32, bytes as they are.
    """
    (scratch / FOLDER).mkdir(parents=True, exist_ok=True)
    ordered = [(name, _stored(tensor)) for name, tensor in sorted(tensors.items())]
    described = [
        (name, "U8" if tensor.dtype == torch.uint8 else "F32", tuple(tensor.shape), tensor.nbytes)
        for name, tensor in ordered
    ]
    metadata = {"format": FORMAT, "version": json.dumps(FORMAT_VERSION)}
    with (scratch / path).open("wb") as stream:
        stream.write(make_header(described, metadata))
        for _, tensor in ordered:
            stream.write(tensor.numpy().data)
    return _open(scratch, path)


def _open(folder: Path, path: str) -> StatisticsFile:
    empty = Manifest(kind=CheckpointKind.DENSE, files=(), tensors=(), weights_digest="")
    return StatisticsFile(LocalCheckpoint(id=FOLDER, path=folder, manifest=empty), path)


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without hard links; whatever else is wrong keeps a copy from being made, too
        shutil.copyfile(source, target)


def _stored(tensor: Tensor) -> Tensor:
    kept = tensor if tensor.dtype == torch.uint8 else tensor.detach().float()
    return kept.cpu().contiguous()
