"""The sign most entries of a merge elect, once each task vector is trimmed: what TIES gives to balanced votes.

It depends on the trim, so this statistic finds the trim's boundaries first and hands them over too.

Source: Yadav et al. 2023, arXiv:2306.01708, and the authors' code (sign of the sum of all elected signs).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workers.contract import Piece, PieceSource
from workers.fusion import Election, FusedMerge, Rows
from workers.numerics import fused, signs, sparsify, task_vectors
from workers.statistics.magnitudes import BoundaryTable, MagnitudeBoundaries
from workers.statistics.streams import map_fused


@dataclass(frozen=True)
class TrimmedElection:
    """Where the task vectors are trimmed, and the majority of the signs they then elect: 1 (also if even) or -1."""

    boundaries: BoundaryTable
    majority: int


@dataclass(frozen=True)
class TrimmedMajority:
    """Asks for the boundaries of a trim (the first rank of the request) and for the majority of elected signs."""

    name: str
    boundaries: MagnitudeBoundaries
    is_weighted: bool  # whether weights count in the vote

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set."""
        return self.boundaries.n_passes + 1

    def collect(self, source: PieceSource) -> TrimmedElection:
        """Find the boundaries, then count the signs that are elected."""
        table = self.boundaries.collect(source)
        counted = map_fused(
            source,
            lambda rows: self._count_signs_of_rows(rows, table, source.weights),
            lambda piece: self._count_signs(piece, table, source.weights),
        )
        balance = sum(counted)
        return TrimmedElection(table, -1 if balance < 0 else 1)

    def _count_signs_of_rows(self, rows: Rows, table: BoundaryTable, weights: Sequence[float]) -> int:
        kept = [boundaries[0] for boundaries in table.of(rows.tensor)]
        origin = rows.position - rows.offset if self.boundaries.scope == "global" else 0
        votes = tuple(signs.weigh_votes(weights, is_weighted=self.is_weighted))
        masks = sparsify.fuse_trim(kept, origin=origin)
        program = FusedMerge(tuple(weights), of_deltas=True, masks=masks, election=Election(votes, 1, "mean"))
        return fused.count_signs(rows, program)

    def _count_signs(self, piece: Piece, table: BoundaryTable, weights: Sequence[float]) -> int:
        deltas = piece.finetuned if piece.base is None else task_vectors.subtract(piece.finetuned, piece.base)
        start = piece.position if self.boundaries.scope == "global" else piece.offset
        kept = [boundaries[0] for boundaries in table.of(piece.tensor)]
        trimmed = sparsify.trim(signs.orient(deltas, weights), kept, start=start)
        elected = signs.elect(trimmed, signs.weigh_votes(weights, is_weighted=self.is_weighted))
        return int(elected.sum(dtype=torch.float64))  # float32 counts to 2^24 only
