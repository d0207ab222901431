"""The merge set as a stream of pieces: what methods and statistics read, in cache-sized runs of float32 elements.

Buffers belong to the thread and are used again for its next piece: a function given to `map` keeps no view of them.
"""

import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from math import prod
from typing import ClassVar, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from app.domain.catalog import Granularity
from app.domain.checkpoints import DTYPE_BYTES, TensorSpec
from app.domain.errors import NotFinite
from app.domain.recipes import NanPolicy
from workers.checkpoints.parallel import PIECES_AT_ONCE, map_in_order
from workers.checkpoints.readahead import want
from workers.checkpoints.reader import FloatReader, TensorReader
from workers.contract import Piece, Place, visit_in_turn
from workers.fusion import FLOAT32, KIND_BYTES, NO_FILE, ROW_KINDS, Bytes, NotClean, Rows, part_of
from workers.granularity import step_elements, width_of
from workers.stored import StoredModels

Result = TypeVar("Result")

ALIGNED = 64  # bytes: where rows begin


@dataclass(frozen=True)
class MergedTensor:
    """One tensor of the merge set: where each checkpoint stores it."""

    name: str
    shape: tuple[int, ...]
    position: int  # flat index of its first element within the merge set
    base: TensorSpec | None
    finetuned: tuple[TensorSpec, ...]  # one per model

    @property
    def n_elements(self) -> int:
        """Number of elements; a 0-d tensor has one."""
        return prod(self.shape)


@dataclass(frozen=True)
class Run:
    """A run of consecutive elements of one tensor."""

    tensor: MergedTensor
    offset: int
    n_elements: int

    @property
    def n_bytes(self) -> int:
        """How many bytes of input it is."""
        specs = (self.tensor.base, *self.tensor.finetuned)
        return sum(DTYPE_BYTES[spec.dtype] for spec in specs if spec is not None) * self.n_elements


@dataclass(frozen=True)
class CheckpointSource:
    """Reads runs of the merge set from the open checkpoints; satisfies workers.contract.PieceSource."""

    pieces_per_run: ClassVar[int] = PIECES_AT_ONCE  # of a run for kernels
    base: FloatReader | None
    models: Sequence[FloatReader]
    merged: Mapping[str, MergedTensor]  # sorted by name
    weights: Sequence[float]  # one per model
    piece_elements: int
    threads: int
    nan_policy: NanPolicy = "fail"
    on_bytes: Callable[[int], None] = lambda _: None  # hears of the input of each run that `map` or `read` is done with
    _buffers: threading.local = field(default_factory=threading.local, init=False, repr=False)
    _judged: set[str] = field(default_factory=set, init=False, repr=False)  # tensors that were read whole, all finite

    @property
    def tensors(self) -> Sequence[tuple[str, tuple[int, ...], int]]:
        """(name, shape, position) of each tensor, sorted by name."""
        return [(tensor.name, tensor.shape, tensor.position) for tensor in self.merged.values()]

    @property
    def n_models(self) -> int:
        """How many models are merged."""
        return len(self.models)

    def map(
        self,
        function: Callable[[Piece], Result],
        tensors: Container[str] | None = None,
        *,
        granularity: Granularity = "element",
    ) -> Iterator[Result]:
        """Apply a function to every piece (of some tensors), on several threads; yield results in order of position."""
        merged = [tensor for name, tensor in self.merged.items() if tensors is None or name in tensors]
        runs = (run for tensor in merged for run in self.cut(tensor.name, granularity))
        yield from map_in_order(
            lambda run: self._count(run, function(self.read_piece(run, granularity))),
            runs,
            threads=self.threads,
            at_once=PIECES_AT_ONCE,
        )
        self._judged.update(tensor.name for tensor in merged)

    def map_rows(
        self,
        function: Callable[[Rows], Result],
        tensors: Container[str] | None = None,
        *,
        granularity: Granularity = "element",
    ) -> Iterator[Result]:
        """Apply a function to the rows of every run, on several threads; yield results in order of position."""
        merged = [tensor for name, tensor in self.merged.items() if tensors is None or name in tensors]
        runs = (run for tensor in merged for run in self.cut_rows(tensor.name, granularity))
        yield from map_in_order(
            lambda run: self._map_run(function, run),
            runs,
            threads=self.threads,
            at_once=PIECES_AT_ONCE // self.pieces_per_run,
        )
        self._judged.update(tensor.name for tensor in merged)

    def visit(
        self, function: Callable[[Place], Result], groups: Sequence[Sequence[tuple[str, Place]]]
    ) -> Sequence[Iterator[Result]]:
        """Apply a function to places within tensors, one after the other, as far as the results are asked for."""
        return visit_in_turn(function, groups)

    def once(self, function: Callable[[], Result]) -> Result:
        """Return what the function finds."""
        return function()

    def spare_judging(self, tensors: Iterable[str]) -> None:
        """Believe that these tensors are finite: they were read whole, and found so."""
        self._judged.update(tensors)

    def _map_run(self, function: Callable[[Rows], Result], run: Run) -> Result:
        try:
            result = function(self.read_rows(run))
        except NotClean:
            result = function(self.read_run(run).rows)
        return self._count(run, result)

    def cut(self, name: str, granularity: Granularity) -> Iterator[Run]:
        """Cut a tensor into runs of about `piece_elements` elements, of whole rows, or not at all; none if empty."""
        tensor = self.merged[name]
        yield from _cut(tensor, step_elements(granularity, tensor.shape, self.piece_elements))

    def cut_rows(self, name: str, granularity: Granularity) -> Iterator[Run]:
        """Cut a tensor into longer runs, for kernels that read in parts."""
        tensor = self.merged[name]
        yield from _cut(tensor, step_elements(granularity, tensor.shape, self.piece_elements * self.pieces_per_run))

    def read(self, tensor: str, offset: int, n_elements: int) -> Piece:
        """Read one run of elements of a tensor, on the caller's thread, into memory of its own."""
        run = Run(self.merged[tensor], offset, n_elements)
        piece = self._count(run, self.read_run(run))
        base = None if piece.base is None else piece.base.clone()
        return Piece(piece.tensor, piece.shape, piece.offset, piece.position, base, piece.finetuned.clone())

    def rows(self, tensor: str, offset: int, n_elements: int) -> Rows:
        """Return the rows of one run of elements, on the caller's thread; valid until the thread's next run."""
        run = Run(self.merged[tensor], offset, n_elements)
        return self._count(run, self.read_rows(run))

    def read_piece(self, run: Run, granularity: Granularity) -> Piece:
        """Read a run as `read_run` does, or open a whole tensor for code that asks for what it needs of each model.

        An adapter is computed rather than read, and so only once.
        """
        if granularity != "matrix" or not all(isinstance(reader, TensorReader) for reader in self.models):
            return self.read_run(run)
        tensor = run.tensor
        if self.nan_policy == "fail" and tensor.name not in self._judged:
            self._judge(run)
            self._judged.add(tensor.name)
        base = None
        if self.base is not None and tensor.base is not None:
            base = self._rows(1, run.n_elements)[0]
            self.base.read_floats(tensor.base, 0, base, is_judged=False)
            self._zero(base)
        models = StoredModels((len(self.models), run.n_elements), partial(self._read_rows, tensor))
        return Piece(tensor.name, tensor.shape, 0, tensor.position, base, models)

    def read_run(self, run: Run) -> Piece:
        """Read a run into this thread's buffers; the piece is valid until the thread's next run.

        Raises: NotFinite naming tensor, model and index, unless the policy is "zero".
        """
        tensor = run.tensor
        rows = self._rows(1 + len(self.models), run.n_elements)  # [1 + n, m], the base model's first
        is_judged = self.nan_policy == "zero" or tensor.name not in self._judged
        is_finite = True
        if self.base is not None and tensor.base is not None:
            is_finite = self.base.read_floats(tensor.base, run.offset, rows[0], is_judged=is_judged)
        for reader, spec, row in zip(self.models, tensor.finetuned, rows[1:], strict=True):
            is_finite = reader.read_floats(spec, run.offset, row, is_judged=is_judged) and is_finite
        if not is_finite:
            self._refuse_or_zero(run, rows, first=0 if self.base is not None else 1)
        base = rows[0] if self.base is not None else None
        return Piece(tensor.name, tensor.shape, run.offset, tensor.position + run.offset, base, rows[1:])

    def read_rows(self, run: Run) -> Rows:
        """Return a run as the files hold it, to be read by kernels; valid until the thread's next run.

        Nothing of it is judged. What no file holds as it is needed, is read now.
        """
        tensor = run.tensor
        stored = self._stored(tensor)
        files = [_open_row(*source) for source in stored]
        kinds = [
            FLOAT32 if file is None else ROW_KINDS[spec.dtype] for file, (_, spec) in zip(files, stored, strict=True)
        ]
        places = [spec.begin + run.offset * KIND_BYTES[kind] for (_, spec), kind in zip(stored, kinds, strict=True)]
        for file, place, kind in zip(files, places, kinds, strict=True):
            if file is not None:
                want(file, place, run.n_elements * KIND_BYTES[kind])
        part = part_of(sum(KIND_BYTES[kind] for kind in kinds))
        room = self._room(run, part)
        sizes = [
            KIND_BYTES[kind] * (run.n_elements if file is None else min(run.n_elements, room))
            for file, kind in zip(files, kinds, strict=True)
        ]
        begins = [0, *accumulate(-(-size // ALIGNED) * ALIGNED for size in sizes)]
        content = self._content(begins[-1])
        for (reader, spec), file, begin, size in zip(stored, files, begins, sizes, strict=False):
            if file is None:
                row = torch.from_numpy(content[begin : begin + size].view(np.float32))
                reader.read_floats(spec, run.offset, row, is_judged=False)
        return Rows(
            tensor=tensor.name,
            shape=tensor.shape,
            offset=run.offset,
            position=tensor.position + run.offset,
            n_elements=run.n_elements,
            content=content,
            at=np.array(begins[:-1], dtype=np.int64),
            kinds=np.array(kinds, dtype=np.int64),
            files=np.array([NO_FILE if file is None else file for file in files], dtype=np.int64),
            places=np.array(places, dtype=np.int64),
            has_base=len(stored) > len(self.models),
            is_judged=self.nan_policy != "zero" and tensor.name in self._judged,
            part=part,
        )

    def _room(self, run: Run, part: int) -> int:
        """Return for how many elements of a row there is room: a part, or a row of the tensor, which may not be cut."""
        return max(part, width_of(run.tensor.shape))

    def _stored(self, tensor: MergedTensor) -> list[tuple[FloatReader, TensorSpec]]:
        """Return where each row of a tensor is stored, the base's first."""
        stored = list(zip(self.models, tensor.finetuned, strict=True))
        if self.base is not None and tensor.base is not None:
            stored.insert(0, (self.base, tensor.base))
        return stored

    def _count(self, run: Run, result: Result) -> Result:
        self.on_bytes(run.n_bytes)
        return result

    def _content(self, n_bytes: int) -> Bytes:
        buffer: Bytes | None = getattr(self._buffers, "content", None)
        if buffer is None or len(buffer) < n_bytes:
            buffer = np.empty(n_bytes, dtype=np.uint8)
            self._buffers.content = buffer
        return buffer

    def _read_rows(self, tensor: MergedTensor, model: int, offset: int, out: Tensor, stride: int) -> None:
        reader = cast("TensorReader", self.models[model])  # read_piece has looked
        reader.read_rows(tensor.finetuned[model], offset, out, stride=stride)
        self._zero(out)

    def _judge(self, run: Run) -> None:
        """Read a whole tensor piece by piece. Raises: NotFinite."""
        for some in self.cut(run.tensor.name, "element"):
            CheckpointSource.read_run(self, some)  # not what another class keeps of it

    def _zero(self, numbers: Tensor) -> None:
        if self.nan_policy == "zero":
            torch.nan_to_num_(numbers, nan=0.0, posinf=0.0, neginf=0.0)

    def _rows(self, n_rows: int, n_elements: int) -> Tensor:
        buffer: Tensor | None = getattr(self._buffers, "rows", None)
        if buffer is None or buffer.numel() < n_rows * n_elements:
            buffer = torch.empty(n_rows * n_elements, dtype=torch.float32)
            self._buffers.rows = buffer
        return buffer[: n_rows * n_elements].view(n_rows, n_elements)

    def _refuse_or_zero(self, run: Run, rows: Tensor, *, first: int) -> None:
        """Set what is not finite to zero if the policy says so, else name the first of it."""
        if self.nan_policy == "zero":
            self._zero(rows[first:])
            return
        found = torch.isfinite(rows[first:]).logical_not_().nonzero()
        row, index = found[0].tolist()
        model = row + first - 1
        which = "the base model" if model < 0 else f"models[{model}]"
        reader = self.base if model < 0 else self.models[model]
        identity = reader.checkpoint.id if reader is not None else ""
        raise NotFinite(
            f"Tensor {run.tensor.name!r} of {which} ({identity}) is {rows[first + row, index].item()} at flat index "
            f"{run.offset + index}, expected a finite number; repair the model, exclude the tensor, or set nan_policy "
            "to 'zero'."
        )


def _cut(tensor: MergedTensor, step: int) -> Iterator[Run]:
    for offset in range(0, tensor.n_elements, step):
        yield Run(tensor, offset, min(step, tensor.n_elements - offset))


def _open_row(reader: FloatReader, spec: TensorSpec) -> int | None:
    """Return the descriptor of the file that holds a row as kernels read it, None where none does."""
    if isinstance(reader, TensorReader) and spec.dtype in ROW_KINDS:
        return reader.descriptor(spec)
    return None
