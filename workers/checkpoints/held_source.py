"""A merge set of which several merges see each run: it is read once, and kept until its thread reads another one."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from app.domain.catalog import Granularity
from workers.checkpoints.finiteness import has_finite_bits
from workers.checkpoints.reader import TORCH_DTYPES, TensorReader
from workers.checkpoints.source import CheckpointSource, Run
from workers.contract import Piece
from workers.fusion import KIND_BYTES, NO_FILE, ROW_KINDS, Rows
from workers.stored import StoredModels

HELD_BYTES = 1 << 30  # of a whole tensor of all models: of a larger one each merge reads what it needs
DTYPES = {kind: TORCH_DTYPES[name] for name, kind in ROW_KINDS.items()}


@dataclass
class _Held:
    """What a thread has read last, and what was made of it; valid until the thread's next run."""

    run: Run
    rows: Rows  # nothing of them is left in a file
    numbers: list[Tensor]  # the same, [m] each, in the dtypes of the rows
    piece: Piece | None = None  # the same as float32
    matrix: Piece | None = None  # the same, models to be widened when they are asked for


@dataclass(frozen=True)
class HeldSource(CheckpointSource):
    """Reads a run once, whoever looks at it then, and however often; runs are short, so that they stay in a cache."""

    pieces_per_run: ClassVar[int] = 4

    def read_rows(self, run: Run) -> Rows:
        """Return a run as kernels read it, out of memory; see CheckpointSource."""
        return super().read_rows(run) if run.n_bytes > HELD_BYTES else self._hold(run).rows

    def rows(self, tensor: str, offset: int, n_elements: int) -> Rows:
        """Return a run that kernels read from the files: a statistic looks there alone, and not at all of it."""
        self._buffers.held = None  # its memory is used
        run = Run(self.merged[tensor], offset, n_elements)
        return self._count(run, super().read_rows(run))

    def read_run(self, run: Run) -> Piece:
        """Return a run as float32; see CheckpointSource."""
        if run.n_bytes > HELD_BYTES:
            return super().read_run(run)
        held = self._hold(run)
        if held.piece is None:
            held.piece = self._widen(held)
        return held.piece

    def read_piece(self, run: Run, granularity: Granularity) -> Piece:
        """Return a run as `read_run` does, or a whole tensor whose models are widened when they are asked for."""
        is_opened = granularity == "matrix" and all(isinstance(reader, TensorReader) for reader in self.models)
        if not is_opened or run.n_bytes > HELD_BYTES:
            return super().read_piece(run, granularity)
        held = self._hold(run)
        if held.matrix is None:
            held.matrix = self._open(held)
        return held.matrix

    def _room(self, run: Run, part: int) -> int:
        return super()._room(run, part) if run.n_bytes > HELD_BYTES else run.n_elements

    def _hold(self, run: Run) -> _Held:
        held: _Held | None = getattr(self._buffers, "held", None)
        if held is None or held.run != run:
            self._buffers.held = None  # what follows writes where its bytes are
            held = self._buffers.held = self._load(run)
        return held

    def _load(self, run: Run) -> _Held:
        """Read what kernels would read from files."""
        rows = super().read_rows(run)
        numbers: list[Tensor] = []
        for (reader, spec), at, kind, file in zip(
            self._stored(run.tensor), rows.at, rows.kinds, rows.files, strict=True
        ):
            size = KIND_BYTES[int(kind)]
            content = rows.content[at : at + size * run.n_elements]
            if file != NO_FILE:
                reader.read_bytes(spec, run.offset * size, content.data)
            numbers.append(torch.from_numpy(content).view(DTYPES[int(kind)]))
        return _Held(run, replace(rows, files=np.full_like(rows.files, NO_FILE)), numbers)

    def _widen(self, held: _Held) -> Piece:
        """Return a run as float32, judged as CheckpointSource judges it."""
        run, tensor = held.run, held.run.tensor
        first = 0 if held.rows.has_base else 1
        rows = self._rows(1 + len(self.models), run.n_elements)  # [1 + n, m], the base model's first
        for row, numbers in zip(rows[first:], held.numbers, strict=True):
            row.copy_(numbers)
        is_judged = self.nan_policy == "zero" or tensor.name not in self._judged
        if is_judged and not _are_finite(held):
            self._refuse_or_zero(run, rows, first=first)
        base = rows[0] if held.rows.has_base else None
        return Piece(tensor.name, tensor.shape, run.offset, tensor.position + run.offset, base, rows[1:])

    def _open(self, held: _Held) -> Piece:
        """Return a whole tensor, judged as CheckpointSource judges it, of which the base alone is widened."""
        run, tensor = held.run, held.run.tensor
        if self.nan_policy == "fail" and tensor.name not in self._judged:
            if not _are_finite(held):
                self._judge(run)
            self._judged.add(tensor.name)
        base = None
        if held.rows.has_base:
            base = held.numbers[0].to(torch.float32, copy=True)
            self._zero(base)
        numbers = held.numbers[-len(self.models) :]

        def read(model: int, offset: int, out: Tensor, stride: int) -> None:
            out.copy_(numbers[model][offset:].as_strided(out.shape, (stride, 1)))
            self._zero(out)

        return Piece(
            tensor.name, tensor.shape, 0, tensor.position, base, StoredModels((len(numbers), run.n_elements), read)
        )


def _are_finite(held: _Held) -> bool:
    return all(has_finite_bits(numbers) for numbers in held.numbers)
