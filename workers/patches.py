"""What turns a shared tensor into one task's: the five codecs, in memory and as tensors of a patch file.

A method gives a patch per task and piece (`Replacement`, `Whole`, `LowRank`, `Masked`, `Signed`); `encode` turns it
into the parts that a file holds; `apply` and `remove` work on a whole tensor in place. The file is described in
docs/patches.md, written and read in checkpoints/patch_files.py.

Arithmetic is float64, rounded to float32 and then to the tensor's dtype; values that are replaced are copied as they
are, so that they come out to the bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.domain.patches import LARGEST_INT32

INDICES, VALUES, MASK, SIGNS, SCALE, LEFT, RIGHT = "indices", "values", "mask", "signs", "scale", "b", "a"
ROWS_AT_ONCE = 256  # of a product: fixed, so that its bits depend on nothing else
ELEMENTS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Replacement:
    """Some entries of the piece get values of their own."""

    indices: Tensor  # [k] int64, ascending, flat within the piece
    values: Tensor  # [k] float32


@dataclass(frozen=True)
class Whole:
    """All entries of the piece get values of their own."""

    values: Tensor  # [m] float32, flat


@dataclass(frozen=True)
class LowRank:
    """A product B·A of two thin matrices, in PEFT's orientation: an adapter's update of a matrix, its scaling within.

    As a patch it is added to a matrix, seen as [rows, columns]; only whole tensors have one.
    """

    a: Tensor  # [r, columns]: of a module [r, in]; a kernel's positions are columns
    b: Tensor  # [rows, r]: of a module [out, r]

    @property
    def rank(self) -> int:
        """Its rank r, which may be 0."""
        return self.a.shape[0]


@dataclass(frozen=True)
class Packed:
    """Bits, eight to a byte, the first one the lowest; the last byte is filled up with zeros."""

    content: NDArray[np.uint8]  # [⌈n / 8⌉]
    n: int


@dataclass(frozen=True)
class Masked:
    """Entries kept go scale times as far from the base as the shared ones; all others are the base's."""

    is_kept: Tensor | Packed  # [m] bool
    scale: float | None  # None: what the method makes of all measures, once the last piece is merged
    measure: NDArray[np.int64] | None = None  # of this piece: sums of a kind that the method knows


@dataclass(frozen=True)
class Measured:
    """What the masks of a whole tensor have measured."""

    n_elements: int
    measures: NDArray[np.int64]  # [n_models, ...]


@dataclass(frozen=True)
class Signed:
    """Every entry moves by `scale`, up or down."""

    is_positive: Tensor  # [m] bool
    scale: float


UNCHANGED = Replacement(torch.empty(0, dtype=torch.int64), torch.empty(0))

Patch = Replacement | Whole | LowRank | Masked | Signed
Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class Part:
    """One part of an encoded patch: a run of numbers, or of bits."""

    role: str
    content: Tensor | Packed
    shape: tuple[int, ...] | None = None  # of the whole part; None: as many as the runs hold together
    is_repeated: bool = False  # every piece of a tensor has it, and the same
    n_entries: int | None = None  # of indices: of the tensor; a file may then hold bits in their place


def is_arithmetic(parts: Mapping[str, Tensor]) -> bool:
    """Tell whether applying the parts computes numbers, where others are copied as they are stored."""
    return not parts.keys() <= {INDICES, MASK, VALUES}


def encode(patch: Patch, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> list[Part]:
    """Return the parts of a patch as they are stored, in memory of their own, or of a low-rank patch's factors.

    dtype: of the tensor patched; shape: of the whole tensor; offset: flat index of the piece's first element. A patch
    that changes nothing has no parts.
    """
    if isinstance(patch, Replacement):
        if patch.indices.numel() == 0:
            return []
        wide = prod(shape) > LARGEST_INT32
        indices = (patch.indices + offset).to(torch.int64 if wide else torch.int32).cpu()
        return [Part(INDICES, indices, n_entries=prod(shape)), Part(VALUES, _stored(patch.values, dtype))]
    if isinstance(patch, Whole):
        return [Part(VALUES, _stored(patch.values.reshape(-1), dtype), shape)]
    if isinstance(patch, LowRank):
        if patch.rank == 0:
            return []
        return [
            Part(LEFT, patch.b.float().cpu().to(dtype).contiguous(), tuple(patch.b.shape)),
            Part(RIGHT, patch.a.float().cpu().to(dtype).contiguous(), tuple(patch.a.shape)),
        ]
    bits, role = (patch.is_kept, MASK) if isinstance(patch, Masked) else (patch.is_positive, SIGNS)
    packed = Part(role, bits if isinstance(bits, Packed) else pack(bits.reshape(-1).cpu().numpy()))
    return [packed] if patch.scale is None else [packed, encode_scale(patch.scale)]


def encode_scale(scale: float) -> Part:
    """Return the part that holds the scale of a mask or of signs."""
    return Part(SCALE, torch.tensor(scale, dtype=torch.float32), (), is_repeated=True)


def apply(tensor: Tensor, parts: Mapping[str, Tensor], base: Tensor | None) -> None:
    """Turn a shared tensor into a task's, in place.

    tensor: [*shape] in its stored dtype, contiguous; parts: of the tensor, by role, none where the patch leaves it as
    it is; base: [*shape], where a mask needs it.
    """
    flat = tensor.view(-1)
    replaced = _find_replaced(parts, flat.numel())
    if replaced is not None:
        flat[replaced] = parts[VALUES]
    elif VALUES in parts:
        flat.copy_(parts[VALUES].view(-1))
    elif LEFT in parts:
        _add_product(flat, parts[LEFT].double(), parts[RIGHT].double())
    elif SIGNS in parts:
        _add_signs(flat, unpack(parts[SIGNS], flat.numel()), float(parts[SCALE]))
    elif MASK in parts:
        if base is None:
            raise ValueError("a mask is applied to a shared tensor beside its base")
        _apply_mask(flat, unpack(parts[MASK], flat.numel()), float(parts[SCALE]), base.reshape(-1))


def remove(tensor: Tensor, parts: Mapping[str, Tensor], shared: Tensor) -> None:
    """Turn a task's tensor back into the shared one, in place: what the patch has touched is taken from `shared`."""
    replaced = _find_replaced(parts, tensor.numel())
    if replaced is not None:
        tensor.view(-1)[replaced] = shared.reshape(-1)[replaced]
    elif parts:
        tensor.copy_(shared)


def _find_replaced(parts: Mapping[str, Tensor], n: int) -> Tensor | None:
    """Return which of n entries get values of their own, as indices or as bits; None where that is not what they do."""
    if INDICES in parts:
        return parts[INDICES].long()
    return unpack(parts[MASK], n) if parts.keys() == {MASK, VALUES} else None


def unpack(packed: Tensor, n: int) -> Tensor:
    """Return n bits, [n] bool; the first is the lowest of the first byte."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=n, bitorder="little").view(np.bool_))


def pack(bits: Bits) -> Packed:
    """Return bits as they are stored. bits: [n]."""
    return Packed(np.packbits(bits, bitorder="little"), len(bits))


def _add_product(flat: Tensor, left: Tensor, right: Tensor) -> None:
    rows = flat.view(left.shape[0], right.shape[1])
    for some, factor in zip(torch.split(rows, ROWS_AT_ONCE), torch.split(left, ROWS_AT_ONCE), strict=True):
        _round_into(some, some.double() + factor @ right)


def _add_signs(flat: Tensor, is_positive: Tensor, scale: float) -> None:
    pieces = (torch.split(tensor, ELEMENTS_AT_ONCE) for tensor in (flat, is_positive))
    for some, up in zip(*pieces, strict=True):
        _round_into(some, some.double() + torch.where(up, scale, -scale).double())


def _apply_mask(flat: Tensor, is_kept: Tensor, scale: float, base: Tensor) -> None:
    pieces = (torch.split(tensor, ELEMENTS_AT_ONCE) for tensor in (flat, is_kept, base))
    for some, kept, origin in zip(*pieces, strict=True):
        if scale != 1.0:  # else the entries kept are the shared ones, to the bit
            _round_into(some, origin.double() + scale * (some.double() - origin.double()))
        some.copy_(torch.where(kept, some, origin))


def _round_into(tensor: Tensor, exact: Tensor) -> None:
    tensor.copy_(exact.float())


def _stored(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.float().cpu().to(dtype, copy=True).contiguous()
