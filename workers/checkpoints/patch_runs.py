"""A patch read run by run: what it holds for some neighboring elements of its tensor, as if these were all of it.

What is written beside them (indices, or bits) says where in the values a run begins: indices ascend and are searched in
the file, bits are counted on the way. Memory is that of a run, whatever the tensor.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from app.domain.checkpoints import DTYPE_BYTES, TensorSpec
from workers import patches
from workers.checkpoints.patch_files import PatchReader, read_part

RUN_ELEMENTS = 1 << 18


def cut_runs(n_elements: int, found: Iterable[Mapping[str, TensorSpec]]) -> list[tuple[int, int]]:
    """Return the runs, [first, behind), in which a tensor is read for patches with these parts; one if it is empty.

    Each begins at a whole byte of bits, and of a product holds as many rows as are multiplied at once.
    """
    columns = [parts[patches.RIGHT].shape[1] for parts in found if patches.RIGHT in parts]
    size = patches.ROWS_AT_ONCE * max(1, columns[0]) if columns else RUN_ELEMENTS
    return [(first, min(n_elements, first + size)) for first in range(0, max(1, n_elements), size)]


def read_runs(reader: PatchReader, tensor: str, runs: Iterable[tuple[int, int]]) -> Iterator[dict[str, Tensor]]:
    """Yield the parts of a tensor's patch for one run after the other, from the first element on.

    Raises: InputChanged when the file ends before they do.
    """
    with reader.open() as file:
        part = _PartOfRuns(file.fileno(), reader.specs(tensor))
        for first, behind in runs:
            yield part.read(first, behind)


@dataclass
class _PartOfRuns:
    """An open patch of one tensor; `n_before`: values of the runs before, where bits say which entries have some."""

    descriptor: int
    specs: Mapping[str, TensorSpec]
    n_before: int = 0

    def read(self, first: int, behind: int) -> dict[str, Tensor]:
        """Return the parts of a run."""
        if patches.LEFT in self.specs:
            return self._read_product(first, behind)
        if patches.INDICES in self.specs:
            return self._read_replaced(first, behind)
        found: dict[str, Tensor] = {}
        for role in self.specs.keys() & {patches.MASK, patches.SIGNS}:
            found[role] = self._elements(role, first // 8, -(-behind // 8))
        if patches.SCALE in self.specs:
            found[patches.SCALE] = read_part(self.descriptor, self.specs[patches.SCALE])
        if patches.VALUES in self.specs and found:
            first, behind = self.n_before, self.n_before + int(np.bitwise_count(found[patches.MASK].numpy()).sum())
            self.n_before = behind
        if patches.VALUES in self.specs:
            found[patches.VALUES] = self._elements(patches.VALUES, first, behind)
        return found

    def _read_product(self, first: int, behind: int) -> dict[str, Tensor]:
        rank, columns = self.specs[patches.RIGHT].shape
        rows = self._elements(patches.LEFT, first // columns * rank, behind // columns * rank)
        return {patches.LEFT: rows.view(-1, rank), patches.RIGHT: read_part(self.descriptor, self.specs[patches.RIGHT])}

    def _read_replaced(self, first: int, behind: int) -> dict[str, Tensor]:
        indices = range(self.specs[patches.INDICES].n_elements)
        begin, end = (bisect_left(indices, place, key=self._index) for place in (first, behind))
        own = self._elements(patches.INDICES, begin, end).long() - first
        return {patches.INDICES: own, patches.VALUES: self._elements(patches.VALUES, begin, end)}

    def _index(self, number: int) -> int:
        return int(self._elements(patches.INDICES, number, number + 1))

    def _elements(self, role: str, begin: int, end: int) -> Tensor:
        return read_part(self.descriptor, slice_of(self.specs[role], begin, end))


def slice_of(spec: TensorSpec, begin: int, end: int) -> TensorSpec:
    """Return where some neighboring elements of a stored tensor lie."""
    item = DTYPE_BYTES[spec.dtype]
    place = {"shape": (end - begin,), "begin": spec.begin + begin * item, "end": spec.begin + end * item}
    return spec.model_copy(update=place)
