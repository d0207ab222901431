"""From which importance on changes are outliers, tensor by tensor: the median plus some interquartile ranges."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from workers.contract import Piece, PieceSource
from workers.granularity import piece_shape
from workers.numerics.importance import weigh_changes
from workers.statistics.magnitudes import MagnitudeBoundaries
from workers.statistics.views import ChangedSource

SMALL = 4  # elements of a tensor whose first quartile is its smallest entry


@dataclass(frozen=True)
class ImportanceThresholds:
    """Asks for the threshold of each tensor, for one model: median + ranges · (third − first quartile).

    The quartile q of n entries is the one at index floor(q · (n − 1)) from the smallest; none is interpolated.
    """

    name: str
    ranges: float

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set: once, but for a sample and for very bad luck with it."""
        return 1

    @property
    def is_local(self) -> bool:
        """Always: each tensor has a threshold of its own."""
        return True

    def collect(self, source: PieceSource) -> Mapping[str, float]:
        """Find the threshold of every tensor that has elements."""
        changes = ChangedSource(source, _weigh_piece, "row")
        table = MagnitudeBoundaries(self.name, "tensor", _ranks).collect(changes)
        found: dict[str, float] = {}
        sizes = {name: prod(shape) for name, shape, _ in source.tensors}
        small = [(name, (name, 0, n)) for name, n in sizes.items() if 0 < n <= SMALL]
        (visited,) = source.visit(lambda run: sorted(changes.read(*run).finetuned[0].tolist(), reverse=True), [small])
        held = dict(zip((name for name, _ in small), visited, strict=True))
        for name, n in sizes.items():
            if n > SMALL:
                third, median, first = (boundary.magnitude for boundary in table.of(name)[0])
            elif n > 0:
                third, median, first = (held[name][rank - 1] for rank in _ranks(n))
            else:
                continue
            found[name] = median + self.ranges * (third - first)
        return found


def _ranks(n: int) -> tuple[int, ...]:
    # of the third quartile, the median and the first quartile, counted from the largest
    return tuple(n - int(quartile * (n - 1)) for quartile in (0.75, 0.5, 0.25))


def _weigh_piece(piece: Piece) -> Piece:
    if piece.base is None:
        return piece
    shape = piece_shape("row", piece.shape, piece.finetuned.shape[1])
    importance = weigh_changes(piece.finetuned[0].view(shape), piece.base.view(shape))
    return replace(piece, base=None, models=importance.view(1, -1))
