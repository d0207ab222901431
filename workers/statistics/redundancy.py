"""The redundant vector of AWD, as coefficients on the task vectors: one set for the whole merge set, per tensor or row.

Of rows there are too many to tell of each: what is told of them is how they are distributed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import fsum
from typing import Annotated, Literal

import torch
from pydantic import Field, JsonValue
from torch import Tensor

from app.domain.parameters import LearningRate, Parameters
from workers.contract import MergeContext, Piece, PieceSource, StatisticRequest
from workers.granularity import piece_shape, width_of
from workers.numerics import disentangle, task_vectors
from workers.numerics.disentangle import Descent
from workers.numerics.precision import inner_products
from workers.statistics import gram

REDUNDANCY = "redundancy"
MAX_REPORTED = 1000  # tensors
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)  # of rows, that are told of

RedundancyScope = Literal["global", "tensor", "row"]


class DisentanglementParameters(Parameters):
    """Parameters of the search for the redundant vector."""

    norm_penalty: Annotated[
        float, Field(ge=0.0, description="Weight of the redundant vector's norm in the objective.")
    ] = 0.1
    learning_rate: LearningRate = 0.01
    steps: Annotated[int, Field(ge=0, le=10_000, description="Steps of gradient descent.")] = 300
    scope: Annotated[
        RedundancyScope,
        Field(description="What has a redundant vector of its own: the whole model, each tensor, or each row."),
    ] = "global"
    normalize: Annotated[
        bool,
        Field(description="Descend on task vectors scaled to a norm near 2, so that their scale does not matter."),
    ] = True

    @property
    def descent(self) -> Descent:
        """The same as a value of the numerics."""
        return Descent(self.norm_penalty, self.learning_rate, self.steps, self.normalize)


@dataclass(frozen=True)
class RedundancyTable:
    """The Gram matrices that were collected and the coefficients that solve them."""

    grams: Mapping[str, Tensor]  # by tensor, or one under "" for all; [n, n] float64
    coefficients: Mapping[str, Tensor]  # under the same keys, [n] float64

    def of(self, tensor: str) -> Tensor:
        """Return the coefficients that hold for a tensor, [n] float64."""
        return self.coefficients["" if "" in self.coefficients else tensor]

    def report(self) -> JsonValue:
        """Return the coefficients, and how far from orthogonal the task vectors were before and are after."""
        parts: dict[str, JsonValue] = {
            name: _report_one(self.grams[name], self.coefficients[name]) for name in list(self.grams)[:MAX_REPORTED]
        }
        return parts.get("", parts)


@dataclass(frozen=True)
class RowRedundancy:
    """The coefficients of each row, and what rows of any length but 0 have in common."""

    coefficients: Mapping[str, Tensor]  # by tensor, [n_rows, n] float64
    cosines_before: Tensor  # [n_rows] float64: the mean |cosine| of each row of all tensors, in order
    cosines_after: Tensor

    def of_piece(self, context: MergeContext, n_rows: int) -> Tensor:
        """Return the coefficients of the rows of a piece, [n_rows, n] float64."""
        first = context.offset // max(1, width_of(context.shape))
        return self.coefficients[context.tensor][first : first + n_rows]

    def report(self) -> JsonValue:
        """Return how many rows there are, their mean |cosine| before and after, and quantiles of the coefficients."""
        n_rows = len(self.cosines_before)
        is_separable = torch.logical_or(self.cosines_before == 0, self.cosines_after < self.cosines_before)
        return {
            "n_rows": n_rows,
            "n_separable_rows": int(is_separable.sum()),
            "mean_absolute_cosine_before": fsum(self.cosines_before.tolist()) / max(1, n_rows),
            "mean_absolute_cosine_after": fsum(self.cosines_after.tolist()) / max(1, n_rows),
            "coefficient_quantiles": self._quantiles() if n_rows else {},
        }

    def _quantiles(self) -> dict[str, JsonValue]:
        """Return, for each share of the rows, the coefficient of each model that this share of them does not exceed."""
        ordered = torch.cat(list(self.coefficients.values())).sort(dim=0).values  # [n_rows, n]
        return {f"{share:g}": ordered[round(share * (len(ordered) - 1))].tolist() for share in QUANTILES}


@dataclass(frozen=True)
class RowRedundancyRequest:
    """Asks for the coefficients of the redundant vector of each row."""

    parameters: DisentanglementParameters
    name: str = REDUNDANCY

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set."""
        return 1

    def collect(self, source: PieceSource) -> RowRedundancy:
        """Collect the inner products of rows and solve."""
        empty = torch.zeros(0, source.n_models, dtype=torch.float64)
        found: dict[str, list[_SolvedRows]] = {name: [] for name, _, _ in source.tensors}
        for rows in source.map(self._solve, granularity="row"):
            found[rows.tensor].append(rows)
        return RowRedundancy(
            {name: torch.cat([empty, *(one.coefficients for one in rows)]) for name, rows in found.items()},
            torch.cat([empty[:, 0], *(one.before for rows in found.values() for one in rows)]),
            torch.cat([empty[:, 0], *(one.after for rows in found.values() for one in rows)]),
        )

    def _solve(self, piece: Piece) -> "_SolvedRows":
        if piece.base is None:
            raise ValueError("task vectors are differences from a base model")
        shape = piece_shape("row", piece.shape, piece.n_elements)
        deltas = task_vectors.subtract(piece.finetuned, piece.base).view(len(piece.models), *shape)
        products = inner_products(deltas)
        solved = disentangle.solve_redundancy(products, self.parameters.descent)
        after = disentangle.subtract_redundancy(products, solved)
        cosines = [disentangle.mean_absolute_cosine(one) for one in (products, after)]
        return _SolvedRows(piece.tensor, solved, *cosines)


@dataclass(frozen=True)
class _SolvedRows:
    """Some rows of a tensor: their coefficients, [n_rows, n], and mean |cosines|, [n_rows], all float64."""

    tensor: str
    coefficients: Tensor
    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class RedundancyRequest:
    """Asks for the coefficients of the redundant vector."""

    parameters: DisentanglementParameters
    name: str = REDUNDANCY

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set."""
        return 1

    def collect(self, source: PieceSource) -> RedundancyTable:
        """Collect the inner products and solve."""
        is_global = self.parameters.scope == "global"
        grams = {"": gram.gram_matrix(source)} if is_global else gram.gram_matrices(source)
        solved = disentangle.solve_redundancy(torch.stack(list(grams.values())), self.parameters.descent)
        return RedundancyTable(grams, dict(zip(grams, solved, strict=True)))


def request_redundancy(parameters: DisentanglementParameters) -> tuple[StatisticRequest, ...]:
    """Return what must be collected beforehand."""
    return ((RowRedundancyRequest if parameters.scope == "row" else RedundancyRequest)(parameters),)


def coefficients_of(n_rows: int, context: MergeContext) -> Tensor:
    """Return the coefficients for a piece of so many rows: [n] float64, or in row scope [n_rows, n]."""
    found: RedundancyTable | RowRedundancy = context.statistics[REDUNDANCY]
    return found.of_piece(context, n_rows) if isinstance(found, RowRedundancy) else found.of(context.tensor)


def _report_one(matrix: Tensor, coefficients: Tensor) -> JsonValue:
    after = disentangle.subtract_redundancy(matrix, coefficients)
    lengths = [disentangle.mean_absolute_cosine(one).item() for one in (matrix, after)]
    return {
        "coefficients": coefficients.tolist(),
        "mean_absolute_cosine_before": lengths[0],
        "mean_absolute_cosine_after": lengths[1],
        "cosines_before": _cosines(matrix),
        "cosines_after": _cosines(after),
        "is_separable": lengths[0] == 0 or lengths[1] < lengths[0],
    }


def _cosines(matrix: Tensor) -> JsonValue:
    return [[value if value == value else None for value in row] for row in gram.cosines(matrix).tolist()]
