"""How many entries of each tensor a model changes alone, and how many others change, too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.contract import Piece, PieceSource
from workers.fusion import Rows
from workers.numerics import fused, task_vectors
from workers.statistics.streams import map_fused


@dataclass(frozen=True)
class Overlap:
    """Counts of one model's changed entries in one tensor."""

    n_shared: int  # changed by another model, too
    n_unique: int


@dataclass(frozen=True)
class Overlaps:
    """Asks for the overlap of each model in each tensor: entries with |τ| > threshold count as changed."""

    name: str
    threshold: float

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set."""
        return 1

    @property
    def is_local(self) -> bool:
        """Always: each tensor has counts of its own."""
        return True

    def collect(self, source: PieceSource) -> Mapping[str, Sequence[Overlap]]:
        """Return one overlap per model, for every tensor that has elements."""
        counts: dict[str, Tensor] = {}
        for tensor, found in map_fused(source, self._count_rows, self._count):
            counts[tensor] = found + counts.get(tensor, 0)
        return {name: [Overlap(*model) for model in found.tolist()] for name, found in counts.items()}

    def _count_rows(self, rows: Rows) -> tuple[str, Tensor]:
        return rows.tensor, torch.from_numpy(fused.count_overlaps(rows, self.threshold))

    def _count(self, piece: Piece) -> tuple[str, Tensor]:
        deltas = piece.finetuned if piece.base is None else task_vectors.subtract(piece.finetuned, piece.base)
        is_changed = deltas.abs() > self.threshold  # [n, m]
        n_changing = is_changed.sum(0)  # integers: exact in any order
        shared, unique = ((is_changed & chosen).sum(1) for chosen in (n_changing > 1, n_changing == 1))
        return piece.tensor, torch.stack([shared, unique], dim=1)
