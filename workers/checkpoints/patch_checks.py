"""The patches of a multitask artifact that comes from elsewhere, checked before it is believed (docs/patches.md).

Headers, shapes, dtypes and indices are checked; values are not judged, as in any import.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from app.domain.checkpoints import DTYPE_BYTES, MERGEABLE_DTYPES, TaskPatch, TensorSpec
from app.domain.errors import CheckpointInvalid
from app.domain.identifiers import is_name
from app.domain.patches import BASE_FILE, patch_path
from workers.checkpoints.patch_files import WEIGHTLESS, read_part, read_patch_header
from workers.checkpoints.patch_spools import SEPARATOR
from workers.patches import INDICES, LEFT, MASK, RIGHT, SCALE, SIGNS, VALUES
from workers.surgery import DOWN, UP

INDICES_AT_ONCE = 1 << 20
_FORMS = ({VALUES}, {INDICES, VALUES}, {MASK, VALUES}, {LEFT, RIGHT}, {MASK, SCALE}, {SIGNS, SCALE})
_MODULE = {DOWN, UP}

Parts = Mapping[str, TensorSpec]  # of one tensor, by role


@dataclass(frozen=True)
class Shared:
    """The model that patches apply to."""

    tensors: Mapping[str, TensorSpec]
    weights_digest: str


def check_patches(
    root: Path, files: Sequence[str], tensors: Sequence[TensorSpec], weights_digest: str
) -> tuple[tuple[TaskPatch, ...], str | None]:
    """Return the tasks' patches, and the file of the base model where masks lie over it.

    files: of a folder, those that may be patches; tensors, weights_digest: of the model that all tasks share.
    Raises: InvalidHeader, CheckpointInvalid naming file and tensor; InputChanged when a file changes meanwhile.
    """
    shared = Shared({tensor.name: tensor for tensor in tensors}, weights_digest)
    base = _Patch(root, BASE_FILE, shared) if BASE_FILE in files else None
    patches = [_Patch(root, file, shared) for file in files if file != BASE_FILE]
    for patch in patches:
        patch.check_base(base)
    return tuple(patch.described() for patch in patches), BASE_FILE if base is not None else None


class _Patch:
    """One file of patches, checked."""

    def __init__(self, root: Path, file: str, shared: Shared) -> None:
        self._path, self._file, self._shared = root / file, file, shared
        self._metadata, tensors = read_patch_header(self._path, file)
        self._check_metadata()
        self.parts: dict[str, dict[str, TensorSpec]] = {}
        for spec in tensors:
            tensor, _, role = spec.name.rpartition(SEPARATOR)
            self.parts.setdefault(tensor, {})[role] = spec
        for tensor, parts in self.parts.items():
            self._check_tensor(tensor, parts)

    def described(self) -> TaskPatch:
        """Return it as a manifest lists it."""
        values = [spec for parts in self.parts.values() for role, spec in parts.items() if role not in WEIGHTLESS]
        return TaskPatch(
            task=self._metadata["task"],
            file=self._file,
            n_values=sum(spec.n_elements for spec in values),
            modules=tuple(sorted(name for name, parts in self.parts.items() if set(parts) == _MODULE)),
        )

    def check_base(self, base: "_Patch | None") -> None:
        """Check that there is a base's tensor under every mask."""
        for tensor, parts in self.parts.items():
            if MASK not in parts or VALUES in parts or (base is not None and VALUES in base.parts.get(tensor, {})):
                continue
            self._refuse(f"found a mask and no {tensor}{SEPARATOR}{VALUES} in {BASE_FILE}, over which it lies", tensor)

    def _check_metadata(self) -> None:
        applies_to, task = self._metadata.get("applies_to"), self._metadata.get("task", "")
        if applies_to != self._shared.weights_digest:
            self._refuse(
                f"found that it applies to weights {applies_to}, expected {self._shared.weights_digest}, those of the "
                "shared model beside it"
            )
        if self._file != BASE_FILE and (patch_path(task) != self._file or not is_name(task)):
            self._refuse(f"found the task {task!r}, expected a name, and its file to be called {patch_path(task)!r}")

    def _check_tensor(self, name: str, parts: Parts) -> None:
        shared = self._shared.tensors.get(name)
        if shared is None and set(parts) == _MODULE and self._file != BASE_FILE:
            self._check_module(name, parts)
            return
        if shared is None:
            self._refuse("found parts of a tensor that the shared model has not", name)
        forms = _FORMS[:1] if self._file == BASE_FILE else _FORMS
        if set(parts) not in forms:
            known = ", or ".join(" and ".join(sorted(form)) for form in forms)
            self._refuse(f"found the parts {', '.join(sorted(parts))}, expected {known}", name)
        if not parts.keys() <= {INDICES, MASK, VALUES} and shared.dtype not in MERGEABLE_DTYPES:
            self._refuse(f"found arithmetic on numbers of dtype {shared.dtype}, expected floating-point ones", name)
        for role, (dtypes, shape) in _expect(parts, shared).items():
            if parts[role].dtype not in dtypes or parts[role].shape != shape:
                found = f"{parts[role].dtype} {list(parts[role].shape)}"
                self._refuse(f"found {role} {found}, expected {' or '.join(dtypes)} {list(shape)}", name)
        self._check_places(name, parts, shared.n_elements)

    def _check_module(self, place: str, parts: Parts) -> None:
        """Check the shapes of a surgery module; whether the model has its place shows when it is run."""
        for role, spec in parts.items():
            if spec.dtype != "F32" or len(spec.shape) != 2:
                self._refuse(f"found {role} {spec.dtype} {list(spec.shape)}, expected F32 of two dimensions", place)
        down, up = parts[DOWN].shape, parts[UP].shape
        if down != up[::-1]:
            self._refuse(f"found down {list(down)} and up {list(up)}, expected [rank, width] and [width, rank]", place)

    def _check_places(self, name: str, parts: Parts, n_elements: int) -> None:
        """Check what says where values belong."""
        if INDICES in parts:
            self._check_indices(name, parts[INDICES], n_elements)
        elif parts.keys() == {MASK, VALUES}:
            self._check_bits(name, parts[MASK], parts[VALUES].n_elements, n_elements)

    def _check_indices(self, name: str, spec: TensorSpec, n_elements: int) -> None:
        """Check that indices ascend, without repeats, and lie within the tensor."""
        last = -1
        item = DTYPE_BYTES[spec.dtype]
        with self._path.open("rb") as file:
            for begin in range(0, spec.n_elements, INDICES_AT_ONCE):
                n = min(INDICES_AT_ONCE, spec.n_elements - begin)
                place = {"shape": (n,), "begin": spec.begin + begin * item, "end": spec.begin + (begin + n) * item}
                indices = read_part(file.fileno(), spec.model_copy(update=place)).long()
                steps = torch.diff(indices, prepend=torch.tensor([last]))
                if int(steps.min()) <= 0:
                    at = begin + int((steps <= 0).nonzero()[0])
                    self._refuse(f"found indices that do not ascend at place {at}, expected each above the last", name)
                last = int(indices[-1])
        if last >= n_elements:
            self._refuse(f"found the index {last}, expected indices below its {n_elements} entries", name)

    def _check_bits(self, name: str, spec: TensorSpec, n_values: int, n_elements: int) -> None:
        """Check that there are as many bits as values, and none behind the last entry."""
        with self._path.open("rb") as file:
            packed = read_part(file.fileno(), spec)
        n_bits = int(np.bitwise_count(packed.numpy()).sum(dtype=np.int64))
        if n_bits != n_values:
            self._refuse(f"found {n_bits} bits in its mask, expected one for each of {n_values} values", name)
        if n_elements % 8 and int(packed[-1]) >> (n_elements % 8):
            self._refuse(f"found bits in its mask behind the last of its {n_elements} entries, expected zeros", name)

    def _refuse(self, what: str, tensor: str | None = None) -> NoReturn:
        where = f"{self._file}, tensor {tensor!r}" if tensor is not None else self._file
        raise CheckpointInvalid(f"{where}: {what}; copy the files of one artifact, all of them, again.")


def _expect(parts: Parts, shared: TensorSpec) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Return the dtypes and the shape that each part must have."""
    own, n_bytes = (shared.dtype,), -(-shared.n_elements // 8)
    if INDICES in parts:
        count = (prod(parts[INDICES].shape),)
        return {INDICES: (("I32", "I64"), count), VALUES: (own, count)}
    if parts.keys() == {MASK, VALUES}:
        return {MASK: (("U8",), (n_bytes,)), VALUES: (own, (parts[VALUES].n_elements,))}
    if VALUES in parts:
        return {VALUES: (own, shared.shape)}
    if LEFT in parts:
        rows, rank = (*parts[LEFT].shape, 1, 1)[:2]
        return {LEFT: (own, (rows, rank)), RIGHT: (own, (rank, shared.n_elements // max(1, rows)))}
    return {MASK if MASK in parts else SIGNS: (("U8",), (n_bytes,)), SCALE: (("F32",), ())}
