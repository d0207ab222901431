"""Where the r-th largest entry of a task vector lies, by magnitude, over the whole merge set or within each tensor.

The search itself, exact and without holding a model, is in ranks.py; the meaning of a boundary in numerics/sparsify.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from workers.contract import PieceSource
from workers.numerics.sparsify import Boundary
from workers.statistics.ranks import USUAL_EFFORT, Effort, ModelBoundaries, Scope, select

__all__ = ["Boundary", "BoundaryTable", "MagnitudeBoundaries"]


@dataclass(frozen=True)
class BoundaryTable:
    """What the request found: the boundaries of the whole merge set, or of each tensor."""

    everywhere: ModelBoundaries | None  # global scope
    by_tensor: Mapping[str, ModelBoundaries]  # tensor scope

    def of(self, tensor: str) -> ModelBoundaries:
        """Return, per model, the boundaries that hold for a tensor.

        Indices count from the start of the merge set in global scope, of the tensor in tensor scope.
        """
        return self.by_tensor[tensor] if self.everywhere is None else self.everywhere


@dataclass(frozen=True)
class MagnitudeBoundaries:
    """Asks for the boundaries of ranks in the order (|τ| descending, flat index ascending), for each model.

    `ranks` gives, from the number of entries in the scope, the ranks wanted.
    """

    name: str
    scope: Literal["global", "tensor"]
    ranks: Callable[[int], tuple[int, ...]]
    effort: Effort = USUAL_EFFORT

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set: once, but for a sample and for very bad luck with it."""
        return 1

    def collect(self, source: PieceSource) -> BoundaryTable:
        """Find the boundaries."""
        sizes = {name: prod(shape) for name, shape, _ in source.tensors}
        if self.scope == "global":
            parts = tuple((name, sizes[name], position) for name, _, position in source.tensors if sizes[name])
            n = sum(sizes.values())
            return BoundaryTable(select(source, [Scope(parts, n, self.ranks(n))], self.effort)[0], {})
        scopes = [Scope(((name, size, 0),) if size else (), size, self.ranks(size)) for name, size in sizes.items()]
        return BoundaryTable(None, dict(zip(sizes, select(source, scopes, self.effort), strict=True)))
