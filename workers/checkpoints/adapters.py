"""Reads an adapter as the dense model it makes of its base: elements W + s·B·A, computed for any run of them.

The factors of a tensor are read whole (they are thin) and kept while its runs are read; the base's elements come from
the base's own files. Sums run over the rank in one order (numerics/thin_products.py), so no cut shows in the bits.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from app.domain.adapters import LoraPart, Placed, place
from app.domain.checkpoints import DTYPE_BYTES, CheckpointKind, LocalCheckpoint, TensorSpec
from workers.checkpoints.finiteness import has_finite_bits
from workers.checkpoints.reader import TORCH_DTYPES, FloatReader, TensorReader
from workers.numerics import thin_products
from workers.patches import LowRank

KEPT_TENSORS = 8  # whose factors stay in memory


@dataclass(frozen=True)
class Factors:
    """Two factors whose product, times the scaling, is added to a tensor as the base stores it."""

    left: Tensor  # [rows, r] float32
    right: Tensor  # [r, columns] float32
    scaling: float


class AdapterReader:
    """An adapter on its open base, with the interface of a TensorReader; safe to share between threads."""

    def __init__(self, checkpoint: LocalCheckpoint, base: TensorReader) -> None:
        self.checkpoint = checkpoint
        self._base = base
        self._placed: dict[str, Placed] = place(checkpoint.manifest, base.checkpoint.manifest)
        self._stored = {tensor.name: tensor for tensor in base.checkpoint.manifest.tensors}
        self._files = TensorReader(checkpoint)
        self._factors: OrderedDict[str, Factors] = OrderedDict()
        self._lock = threading.Lock()

    def read_floats(self, tensor: TensorSpec, offset: int, out: Tensor, *, is_judged: bool = True) -> bool:
        """Fill `out` with elements offset, offset + 1, … of the dense model's tensor; tell whether all are finite.

        out: [m] float32, contiguous, on the CPU.
        """
        if out.numel() == 0:
            return True
        placed = self._placed.get(tensor.name, Placed())
        is_finite = self._read_weight(tensor, placed, offset, out, is_judged=is_judged)
        if placed.lora is None or placed.lora.rank == 0:
            return is_finite
        factors = self._factors_of(tensor.name, placed)
        added = thin_products.multiply_run(factors.left, factors.right, offset, out.numel()).mul_(factors.scaling)
        out.copy_(out.double().add_(added))
        return not is_judged or has_finite_bits(out)

    def read_bytes(self, tensor: TensorSpec, offset: int, out: memoryview) -> None:
        """Fill `out` with the bytes, from byte `offset` on, that the tensor has in its own dtype."""
        placed = self._placed.get(tensor.name, Placed())
        if placed.lora is not None:
            self._compute_bytes(tensor, offset, out)
        elif placed.full is not None:
            self._files.read_bytes(placed.full, offset, out)
        else:
            self._base.read_bytes(self._stored[tensor.name], offset, out)

    def update_of(self, name: str) -> LowRank | None:
        """Return what is added to a tensor, as the base stores it, float64; None where the tensor is replaced."""
        placed = self._placed.get(name, Placed())
        if placed.full is not None:
            return None
        if placed.lora is None or placed.lora.rank == 0:
            shape = self._stored[name].shape
            rows, columns = (shape[0], prod(shape[1:])) if shape else (1, 1)
            return LowRank(torch.zeros(0, columns, dtype=torch.float64), torch.zeros(rows, 0, dtype=torch.float64))
        factors = self._factors_of(name, placed)
        return LowRank(factors.right.double(), factors.left.double().mul_(factors.scaling))

    def close(self) -> None:
        """Close the adapter's own files; the base's belong to whoever opened them."""
        self._files.close()

    def __enter__(self) -> "AdapterReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _compute_bytes(self, tensor: TensorSpec, offset: int, out: memoryview) -> None:
        item = DTYPE_BYTES[tensor.dtype]
        first, behind = offset // item, -(-(offset + len(out)) // item)
        values = torch.empty(behind - first, dtype=torch.float32)
        self.read_floats(tensor, first, values, is_judged=False)
        content = values.to(TORCH_DTYPES[tensor.dtype]).view(torch.uint8).numpy().data
        begin = offset - first * item
        out[:] = content[begin : begin + len(out)]

    def _read_weight(self, tensor: TensorSpec, placed: Placed, offset: int, out: Tensor, *, is_judged: bool) -> bool:
        if placed.full is not None:
            return self._files.read_floats(placed.full, offset, out, is_judged=is_judged)
        return self._base.read_floats(self._stored[tensor.name], offset, out, is_judged=is_judged)

    def _factors_of(self, name: str, placed: Placed) -> Factors:
        with self._lock:
            if name in self._factors:
                self._factors.move_to_end(name)
                return self._factors[name]
            if placed.lora is None:
                raise KeyError(name)
            factors = read_factors(self._files, placed.lora, is_transposed=placed.is_transposed)
            self._factors[name] = factors
            while len(self._factors) > KEPT_TENSORS:
                self._factors.popitem(last=False)
            return factors


def open_model(stack: ExitStack, model: LocalCheckpoint, base: TensorReader | None) -> FloatReader:
    """Open a model's files; an adapter as the dense model that it makes of the open base."""
    if model.manifest.kind is CheckpointKind.ADAPTER and base is not None:
        return stack.enter_context(AdapterReader(model, base))
    return stack.enter_context(TensorReader(model))


def read_updates(models: Sequence[FloatReader], tensor: str) -> list[LowRank | None]:
    """Return what each model adds to a tensor of the base, as contract.ReadUpdates does."""
    return [model.update_of(tensor) if isinstance(model, AdapterReader) else None for model in models]


def read_factors(files: TensorReader, part: LoraPart, *, is_transposed: bool) -> Factors:
    """Return the factors of an update, turned to how the base stores the tensor.

    A linearized adapter stands for its Taylor expansion B·A₀ + B₀·A − B₀·A₀, which is again a product, of rank 3r;
    where B₀ is zero, as PEFT starts, of rank r.
    """
    a, b = thin_products.expand(
        read_factor(files, part.a),
        read_factor(files, part.b),
        None if part.a_start is None else read_factor(files, part.a_start),
        None if part.b_start is None else read_factor(files, part.b_start),
    )
    left, right = (a.T, b.T) if is_transposed else (b, a)
    return Factors(left, right, part.scaling)


def read_factor(files: TensorReader, spec: TensorSpec) -> Tensor:
    """Return a factor as a matrix, float32: A [r, in], B [out, r]; a kernel's positions are columns."""
    out = torch.empty(spec.n_elements, dtype=torch.float32)
    files.read_floats(spec, 0, out, is_judged=False)
    return out.view(spec.shape[0], -1)
