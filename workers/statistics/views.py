"""Sources made of other sources: the same tensors seen through a change, some of the tensors, tensors in memory."""

import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

from app.domain.catalog import Granularity, coarsest
from app.domain.errors import NotFinite
from workers.contract import NestedMerge, Piece, PieceSource, Place, StatisticRequest, visit_in_turn
from workers.fusion import NotClean, Rows
from workers.granularity import run_around, step_elements

Result = TypeVar("Result")
Placed = TypeVar("Placed", Piece, Rows)


@dataclass(frozen=True)
class SourceView:
    """A source that shows another one as it is, but for what a kind of view does otherwise.

    With passes (`map`, `map_rows`) and weights, which each kind adds, it satisfies workers.contract.PieceSource.
    """

    source: PieceSource

    @property
    def tensors(self) -> Sequence[tuple[str, tuple[int, ...], int]]:
        """(name, shape, position) of each tensor."""
        return self.source.tensors

    @property
    def threads(self) -> int:
        """How many threads read at once."""
        return self.source.threads

    @property
    def n_models(self) -> int:
        """How many models are merged."""
        return self.source.n_models

    def visit(
        self, function: Callable[[Place], Result], groups: Sequence[Sequence[tuple[str, Place]]]
    ) -> Sequence[Iterator[Result]]:
        """Apply a function to places within tensors, wherever the source has it done."""
        return self.source.visit(function, groups)

    def once(self, function: Callable[[], Result]) -> Result:
        """Return what the function finds, or what it has found before."""
        return self.source.once(function)

    def read(self, tensor: str, offset: int, n_elements: int) -> Piece:
        """Read one run of elements of a tensor."""
        return self.source.read(tensor, offset, n_elements)

    def rows(self, tensor: str, offset: int, n_elements: int) -> Rows | None:
        """Return the rows of one run of elements, if the source has any."""
        return self.source.rows(tensor, offset, n_elements)


@dataclass(frozen=True)
class ChangedSource(SourceView):
    """A source whose pieces are seen through a pure change, which needs pieces of some granularity."""

    change: Callable[[Piece], Piece]
    granularity: Granularity
    change_rows: Callable[[Rows], Rows] | None = None  # the same of rows, if they can say it
    _last: threading.local = field(default_factory=threading.local, init=False, repr=False)  # .key, .piece

    @property
    def weights(self) -> Sequence[float]:
        """One weight per model."""
        return self.source.weights

    def map(
        self,
        function: Callable[[Piece], Result],
        tensors: Container[str] | None = None,
        *,
        granularity: Granularity = "element",
    ) -> Iterator[Result]:
        """Apply a function to every changed piece."""
        needed = coarsest((granularity, self.granularity))
        return self.source.map(lambda piece: function(self.change(piece)), tensors, granularity=needed)

    def map_rows(
        self,
        function: Callable[[Rows], Result],
        tensors: Container[str] | None = None,
        *,
        granularity: Granularity = "element",
    ) -> Iterator[Result]:
        """Apply a function to the rows of every changed piece.

        Raises: NotFinite where the change has made them so.
        """
        change = self.change_rows
        if change is not None:
            needed = coarsest((granularity, self.granularity))
            return self.source.map_rows(lambda rows: function(change(rows)), tensors, granularity=needed)
        return self.map(lambda piece: _of_rows(function, piece), tensors, granularity=granularity)

    def rows(self, tensor: str, offset: int, n_elements: int) -> Rows | None:
        """Return the rows of one run, if they can say the change of any."""
        if self.change_rows is None or self.granularity != "element":
            return None
        rows = self.source.rows(tensor, offset, n_elements)
        return None if rows is None else self.change_rows(rows)

    def read(self, tensor: str, offset: int, n_elements: int) -> Piece:
        """Read one run of elements, by changing the rows or the tensor around it; a thread's last of these is kept."""
        first, behind = run_around(self.granularity, self._shapes[tensor], offset, offset + n_elements)
        key = (tensor, first, behind)
        if getattr(self._last, "key", None) != key:
            self._last.key = self._last.piece = None  # not held beside the next one
            self._last.piece = self.change(self.source.read(tensor, first, behind - first))
            self._last.key = key
        changed: Piece = self._last.piece
        return _cut(changed, offset - first, n_elements)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, shape, _ in self.tensors}


@dataclass(frozen=True)
class PartOfSource(SourceView):
    """Some of a source's tensors, as if there were no others, under weights of their own."""

    names: frozenset[str]
    weights: Sequence[float]

    @cached_property
    def tensors(self) -> Sequence[tuple[str, tuple[int, ...], int]]:
        """(name, shape, position) of each tensor; positions are counted anew."""
        found: list[tuple[str, tuple[int, ...], int]] = []
        position = 0
        for name, shape, _ in self.source.tensors:
            if name in self.names:
                found.append((name, shape, position))
                position += prod(shape)
        return found

    def map(
        self,
        function: Callable[[Piece], Result],
        tensors: Container[str] | None = None,
        *,
        granularity: Granularity = "element",
    ) -> Iterator[Result]:
        """Apply a function to every piece of these tensors."""
        return self.source.map(
            lambda piece: function(self.place(piece)), self._wanted(tensors), granularity=granularity
        )

    def map_rows(
        self,
        function: Callable[[Rows], Result],
        tensors: Container[str] | None = None,
        *,
        granularity: Granularity = "element",
    ) -> Iterator[Result]:
        """Apply a function to the rows of these tensors."""
        return self.source.map_rows(
            lambda rows: function(self.place(rows)), self._wanted(tensors), granularity=granularity
        )

    def read(self, tensor: str, offset: int, n_elements: int) -> Piece:
        """Read one run of elements of a tensor."""
        return self.place(self.source.read(tensor, offset, n_elements))

    def rows(self, tensor: str, offset: int, n_elements: int) -> Rows | None:
        """Return the rows of one run of elements, if the whole source has any."""
        rows = self.source.rows(tensor, offset, n_elements)
        return None if rows is None else self.place(rows)

    def place(self, piece: Placed) -> Placed:
        """Return a piece, or rows, of the whole source with the position among these tensors."""
        return replace(piece, position=self.positions[piece.tensor] + piece.offset)

    def _wanted(self, tensors: Container[str] | None) -> frozenset[str]:
        return self.names if tensors is None else frozenset(name for name in self.names if name in tensors)

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """Tensor name -> flat index of its first element among these tensors."""
        return {name: position for name, _, position in self.tensors}


@dataclass(frozen=True)
class TensorSource:
    """A merge set that lies in memory, cut into runs of at most `piece_elements` elements."""

    base: Mapping[str, Tensor] | None  # any floating dtype
    models: Sequence[Mapping[str, Tensor]]
    weights: Sequence[float]  # one per model
    piece_elements: int = 1 << 20

    @cached_property
    def tensors(self) -> Sequence[tuple[str, tuple[int, ...], int]]:
        """(name, shape, position) of each tensor, sorted by name."""
        found: list[tuple[str, tuple[int, ...], int]] = []
        position = 0
        for name in sorted(self.models[0]):
            shape = tuple(self.models[0][name].shape)
            found.append((name, shape, position))
            position += prod(shape)
        return found

    @property
    def threads(self) -> int:
        """How many threads read at once."""
        return 1

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
        """Apply a function to every piece, one after the other."""
        for name, shape, _ in self.tensors:
            n = prod(shape) if tensors is None or name in tensors else 0
            step = step_elements(granularity, shape, self.piece_elements)
            for offset in range(0, n, step):
                yield function(self.read(name, offset, min(step, n - offset)))

    def map_rows(
        self,
        function: Callable[[Rows], Result],
        tensors: Container[str] | None = None,
        *,
        granularity: Granularity = "element",
    ) -> Iterator[Result]:
        """Apply a function to the rows of every piece."""
        return self.map(lambda piece: function(piece.rows), tensors, granularity=granularity)

    def visit(
        self, function: Callable[[Place], Result], groups: Sequence[Sequence[tuple[str, Place]]]
    ) -> Sequence[Iterator[Result]]:
        """Apply a function to places within tensors, one after the other."""
        return visit_in_turn(function, groups)

    def once(self, function: Callable[[], Result]) -> Result:
        """Return what the function finds."""
        return function()

    def rows(self, tensor: str, offset: int, n_elements: int) -> Rows:
        """Return the rows of one run of elements of a tensor."""
        return self.read(tensor, offset, n_elements).rows

    def read(self, tensor: str, offset: int, n_elements: int) -> Piece:
        """Read one run of elements of a tensor."""
        shape, position = next((shape, position) for name, shape, position in self.tensors if name == tensor)
        run = slice(offset, offset + n_elements)
        return Piece(
            tensor=tensor,
            shape=shape,
            offset=offset,
            position=position + offset,
            base=None if self.base is None else self.base[tensor].float().flatten()[run],
            models=torch.stack([model[tensor].float().flatten()[run] for model in self.models]),
        )


@dataclass(frozen=True)
class AgainstNested:
    """A statistic of what the models differ by from a nested method's result, in place of the base model."""

    nested: NestedMerge
    request: StatisticRequest
    granularity: Granularity  # of the nested method

    @property
    def name(self) -> str:
        """Key under which the context holds the result."""
        return self.request.name

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set."""
        return self.request.n_passes

    def collect(self, source: PieceSource) -> object:
        """Read the source and return the statistic."""
        changed = ChangedSource(
            source, lambda piece: replace(piece, base=self.nested.of_piece(piece)), self.granularity
        )
        return self.request.collect(changed)


def _of_rows(function: Callable[[Rows], Result], piece: Piece) -> Result:
    try:
        return function(piece.rows)
    except NotClean:
        raise NotFinite(
            f"Tensor {piece.tensor!r} holds numbers that are not finite once its task vectors were changed, expected "
            "finite ones; exclude the tensor, or leave the change out."
        ) from None


def _cut(piece: Piece, begin: int, n_elements: int) -> Piece:
    run = slice(begin, begin + n_elements)
    return replace(
        piece,
        offset=piece.offset + begin,
        position=piece.position + begin,
        base=None if piece.base is None else piece.base[run],
        models=piece.finetuned[:, run],
        merged=None if piece.merged is None else piece.merged[run],
    )
