"""The file with the sums that a result keeps (workers/sums.py): written like a patch, read a run at a time.

Parts of a tensor: `indices` I32 (I64 beyond 2³¹ entries) [k] ascending, `numerator` and `denominator` F64 [k]; where no
model changes an entry it is left out. Metadata: format, version, method, and `base`: the base model's weights digest.
"""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from app.domain.checkpoints import FileEntry, LocalCheckpoint
from app.domain.errors import IncompatibleCheckpoints
from app.domain.recipes import Recipe
from app.domain.sums import SUMS_FILE, SUMS_FORMAT, SUMS_FORMAT_VERSION
from workers.checkpoints.patch_files import PatchFile, PatchWriter, read_part, read_patch_header
from workers.checkpoints.patch_runs import slice_of
from workers.checkpoints.patch_spools import SEPARATOR
from workers.checkpoints.reader import path_of
from workers.patches import INDICES, Part
from workers.sums import DENOMINATOR, NUMERATOR, Sums


def _base_digest(recipe: Recipe) -> str:
    return recipe.base_model.weights_digest if recipe.base_model is not None else ""


class SumsWriter:
    """Takes the sums of all tensors and pieces in the plan's order, and writes the file at the end."""

    def __init__(self, recipe: Recipe, output: Path) -> None:
        metadata = {
            "format": SUMS_FORMAT,
            "version": str(SUMS_FORMAT_VERSION),
            "method": recipe.method,
            "method_version": str(recipe.method_version),
            "base": _base_digest(recipe),
        }
        self._writer = PatchWriter(output, [PatchFile(SUMS_FILE, metadata)])

    def write(self, tensor: str, parts: list[Part]) -> None:
        """Take the next run of a tensor, encoded."""
        self._writer.write(0, tensor, "F64", parts)

    def finish(self) -> FileEntry:
        """Write the file."""
        return self._writer.finish({})[0].entry

    def abandon(self) -> None:
        """Remove what was written."""
        self._writer.abandon()


class SumsReader:
    """The sums that a result has kept; safe to share between threads.

    Raises: InvalidHeader; IncompatibleCheckpoints where they are counted from another base than the recipe's.
    """

    def __init__(self, checkpoint: LocalCheckpoint, recipe: Recipe) -> None:
        self._path = path_of(checkpoint, SUMS_FILE)
        metadata, tensors = read_patch_header(self._path, SUMS_FILE, (SUMS_FORMAT, SUMS_FORMAT_VERSION))
        if metadata.get("base") != _base_digest(recipe):
            raise IncompatibleCheckpoints(
                f"{SUMS_FILE} of {checkpoint.id} is counted from a base model with weights {metadata.get('base')}, "
                f"found {_base_digest(recipe)}; name the base model that it was merged over."
            )
        self._parts = {spec.name: spec for spec in tensors}
        self._indices = lru_cache(maxsize=2)(self._read_indices)  # of the tensors that are being merged

    def read(self, tensor: str, offset: int, n_elements: int) -> Sums:
        """Return a run of a tensor's sums, [n_elements] each; 0 where the file holds none."""
        sums = Sums(torch.zeros(n_elements, dtype=torch.float64), torch.zeros(n_elements, dtype=torch.float64))
        indices = self._indices(tensor)
        begin, end = torch.searchsorted(indices, torch.tensor([offset, offset + n_elements])).tolist()
        if begin < end:
            own = indices[begin:end].long() - offset
            sums.numerator[own] = self._read(f"{tensor}{SEPARATOR}{NUMERATOR}", begin, end)
            sums.denominator[own] = self._read(f"{tensor}{SEPARATOR}{DENOMINATOR}", begin, end)
        return sums

    def _read_indices(self, tensor: str) -> Tensor:
        name = f"{tensor}{SEPARATOR}{INDICES}"
        if name not in self._parts:
            return torch.empty(0, dtype=torch.int32)
        return self._read(name, 0, self._parts[name].n_elements)

    def _read(self, name: str, begin: int, end: int) -> Tensor:
        with self._path.open("rb") as file:
            return read_part(file.fileno(), slice_of(self._parts[name], begin, end))
