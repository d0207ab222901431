"""Statistics of each model as files in the model's own tensor names: written while learning, read while merging.

One model's statistics are in memory while they are counted; then they lie on the disk, whatever the number of models.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor

from app.domain.checkpoints import CheckpointKind, FileEntry, LocalCheckpoint, Manifest, TensorSpec
from app.domain.errors import IncompatibleCheckpoints
from app.domain.headers import make_header
from app.domain.statistics_files import FOLDER
from workers.checkpoints import files, hashing
from workers.checkpoints.reader import TensorReader, path_of

FORMAT = "amalgam-statistics"
FORMAT_VERSION = 1
RUN_ELEMENTS = 1 << 20  # that are read at a time


class StatisticsFile:
    """One model's statistics: float32 tensors by name, open for reading from any thread."""

    def __init__(self, checkpoint: LocalCheckpoint, path: str) -> None:
        tensors = files.read_header(path_of(checkpoint, path), name=path)
        other = next((tensor for tensor in tensors if tensor.dtype != "F32"), None)
        if other is not None:
            raise IncompatibleCheckpoints(
                f"{checkpoint.id}: tensor {other.name!r} of {path} is {other.dtype}, expected F32; write statistics in "
                "float32."
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

    def __init__(self, of_model: Sequence[StatisticsFile], *, new_in: Path | None = None) -> None:
        """of_model: in the models' order. new_in: the folder in which they were written; None: they are of others."""
        self.of_model = of_model
        self._new_in = new_in

    def report(self) -> dict[str, JsonValue]:
        """Return the files."""
        paths: list[JsonValue] = [one.path for one in self.of_model]
        return {"files": paths, "n_tensors": len({name for one in self.of_model for name in one.tensors})}

    def write(self, folder: Path) -> Sequence[FileEntry]:
        """Move new files into the artifact's folder."""
        entries: list[FileEntry] = []
        for one in {one.path: one for one in self.of_model}.values():
            one.close()
            if self._new_in is not None:
                target = folder / one.path
                target.parent.mkdir(exist_ok=True)
                (self._new_in / one.path).replace(target)
                sha256 = hashing.hash_file(target, lambda _: None)
                entries.append(FileEntry(path=one.path, size_bytes=target.stat().st_size, sha256=sha256))
        return entries


def write_statistics(scratch: Path, path: str, tensors: Mapping[str, Tensor]) -> StatisticsFile:
    """Write statistics as a safetensors file at `path` below `scratch`, and open it. tensors: as float32, by name."""
    (scratch / FOLDER).mkdir(parents=True, exist_ok=True)
    ordered = sorted(tensors.items())
    described = [(name, "F32", tuple(tensor.shape), 4 * tensor.numel()) for name, tensor in ordered]
    metadata = {"format": FORMAT, "version": json.dumps(FORMAT_VERSION)}
    with (scratch / path).open("wb") as stream:
        stream.write(make_header(described, metadata))
        for _, tensor in ordered:
            stream.write(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    empty = Manifest(kind=CheckpointKind.DENSE, files=(), tensors=(), weights_digest="")
    return StatisticsFile(LocalCheckpoint(id=FOLDER, path=scratch, manifest=empty), path)
