"""One pass over a source by the faster of two functions: on rows, by kernels where there are any, or on pieces."""

from collections.abc import Callable, Container, Iterator
from typing import TypeVar

from app.domain.catalog import Granularity
from workers.contract import Piece, PieceSource
from workers.fusion import Rows
from workers.numerics import fused

Result = TypeVar("Result")


def map_fused(
    source: PieceSource,
    of_rows: Callable[[Rows], Result],
    of_piece: Callable[[Piece], Result],
    tensors: Container[str] | None = None,
    *,
    granularity: Granularity = "element",
) -> Iterator[Result]:
    """Yield, in order of position, what either function makes of each piece: both make the same."""
    if fused.is_ready():
        return source.map_rows(of_rows, tensors, granularity=granularity)
    return source.map(of_piece, tensors, granularity=granularity)
