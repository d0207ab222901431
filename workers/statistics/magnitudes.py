"""Where the r-th largest entry of a task vector lies, by magnitude, over the whole merge set or within each tensor.

The search itself, exact and without holding a model, is in ranks.py; the meaning of a boundary in numerics/sparsify.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from workers.contract import PieceSource
from workers.numerics.sparsify import Boundary
from workers.statistics.rank_scopes import USUAL_EFFORT, Effort, Scope
from workers.statistics.ranks import ModelBoundaries, select

__all__ = ["Boundary", "BoundaryTable", "MagnitudeBoundaries"]


Ranks = Callable[[int], tuple[int, ...]]


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

    `ranks` gives, from the number of entries in the scope, the ranks wanted; `of_models` those of each model,
    where they differ.
    """

    name: str
    scope: Literal["global", "tensor"]
    ranks: Ranks
    effort: Effort = USUAL_EFFORT
    of_models: tuple[Ranks, ...] = ()
    is_placed: bool = True  # False: magnitudes alone are asked for, which is less to read

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set: once, but for a sample and for very bad luck with it."""
        return 1

    @property
    def is_local(self) -> bool:
        """Whether each tensor has boundaries of its own."""
        return self.scope == "tensor"

    def collect(self, source: PieceSource) -> BoundaryTable:
        """Find the boundaries."""
        sizes = {name: prod(shape) for name, shape, _ in source.tensors}
        if self.scope == "global":
            parts = tuple((name, sizes[name], position) for name, _, position in source.tensors if sizes[name])
            n = sum(sizes.values())
            return BoundaryTable(self._select(source, [Scope(parts, n, self._all_ranks(n))])[0], {})
        scopes = [
            Scope(((name, size, 0),) if size else (), size, self._all_ranks(size)) for name, size in sizes.items()
        ]
        return BoundaryTable(None, dict(zip(sizes, self._select(source, scopes), strict=True)))

    def _all_ranks(self, n: int) -> tuple[int, ...]:
        if not self.of_models:
            return self.ranks(n)
        return tuple(sorted({rank for ranks in self.of_models for rank in ranks(n)}))

    def _select(self, source: PieceSource, scopes: Sequence[Scope]) -> list[ModelBoundaries]:
        """Return the boundaries of each scope: of each model those of its own ranks."""
        found = select(source, scopes, self.effort, is_placed=self.is_placed)
        if not self.of_models:
            return found
        return [
            tuple(
                tuple(boundaries[scope.ranks.index(rank)] for rank in ranks(scope.n_elements))
                for boundaries, ranks in zip(of_scope, self.of_models, strict=True)
            )
            for scope, of_scope in zip(scopes, found, strict=True)
        ]
