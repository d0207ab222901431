"""From which importance on changes are outliers, tensor by tensor: the median plus some interquartile ranges."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from workers.contract import Piece, PieceSource
from workers.fusion import Importance, Rows
from workers.granularity import piece_shape, width_of
from workers.numerics import fused, importance
from workers.statistics.magnitudes import MagnitudeBoundaries
from workers.statistics.streams import map_fused
from workers.statistics.views import ChangedSource

SMALL = 4  # elements of a tensor whose first quartile is its smallest entry


@dataclass(frozen=True)
class OutlyingImportance:
    """Asks for the threshold of each tensor, for one model: median + ranges · (third − first quartile).

    The quartile q of n entries is the one at index floor(q · (n − 1)) from the smallest; none is interpolated. What a
    row diverges by is found first, so that any run of entries can be weighed after.
    """

    name: str
    ranges: float

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set: twice, but for a sample and for very bad luck with it."""
        return 2

    @property
    def is_local(self) -> bool:
        """Always: each tensor has a threshold of its own."""
        return True

    def collect(self, source: PieceSource) -> Mapping[str, Importance]:
        """Find the threshold of every tensor that has elements, and the divergences of its rows."""
        shapes = {name: shape for name, shape, _ in source.tensors if prod(shape) > 0}
        divergences: dict[str, list[NDArray[np.float64]]] = {name: [] for name in shapes}
        for name, found in map_fused(source, _diverge_rows, _diverge_piece, shapes, granularity="row"):
            divergences[name].append(found)
        of_rows = {
            name: Importance(0.0, np.concatenate(divergences[name]), width_of(shape)) for name, shape in shapes.items()
        }
        changes = ChangedSource(
            source,
            lambda piece: _weigh_piece(piece, of_rows),
            "element",
            change_rows=lambda rows: replace(rows, importance=of_rows[rows.tensor]),
        )
        quartiles = self._find_quartiles(changes, {name: prod(shape) for name, shape in shapes.items()})
        return {
            name: replace(of_rows[name], threshold=median + self.ranges * (third - first))
            for name, (third, median, first) in quartiles.items()
        }

    def _find_quartiles(self, changes: PieceSource, sizes: Mapping[str, int]) -> dict[str, list[float]]:
        table = MagnitudeBoundaries(self.name, "tensor", _ranks, is_placed=False).collect(changes)
        small = [(name, (name, 0, n)) for name, n in sizes.items() if n <= SMALL]
        (visited,) = changes.visit(lambda run: sorted(changes.read(*run).finetuned[0].tolist(), reverse=True), [small])
        held = {
            name: [ordered[rank - 1] for rank in _ranks(sizes[name])]
            for (name, _), ordered in zip(small, visited, strict=True)
        }
        return held | {
            name: [boundary.magnitude for boundary in table.of(name)[0]] for name, n in sizes.items() if n > SMALL
        }


def _ranks(n: int) -> tuple[int, ...]:
    # of the third quartile, the median and the first quartile, counted from the largest
    return tuple(n - int(quartile * (n - 1)) for quartile in (0.75, 0.5, 0.25))


def _diverge_rows(rows: Rows) -> tuple[str, NDArray[np.float64]]:
    divergences: NDArray[np.float64] = fused.diverge_rows(rows).numpy()
    return rows.tensor, divergences


def _diverge_piece(piece: Piece) -> tuple[str, NDArray[np.float64]]:
    if piece.base is None:
        raise ValueError("importance is that of changes from a base model")
    shape = piece_shape("row", piece.shape, piece.n_elements)
    divergences: NDArray[np.float64] = importance.diverge(
        piece.finetuned[0].view(shape), piece.base.view(shape)
    ).numpy()
    return piece.tensor, divergences


def _weigh_piece(piece: Piece, of_rows: Mapping[str, Importance]) -> Piece:
    if piece.base is None:
        return piece
    weighed = importance.weigh(piece.finetuned[0], piece.base, of_rows[piece.tensor], start=piece.offset)
    return replace(piece, base=None, models=weighed.unsqueeze(0))
