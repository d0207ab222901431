"""The redundant vector of AWD, as coefficients on the task vectors: one set for the whole merge set, or per tensor.

Per row there is nothing to collect: the rows at hand are all that is needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, JsonValue
from torch import Tensor

from app.domain.parameters import LearningRate, Parameters
from workers.contract import MergeContext, PieceSource, StatisticRequest
from workers.numerics import disentangle
from workers.numerics.disentangle import Descent
from workers.numerics.precision import inner_products
from workers.statistics import gram

REDUNDANCY = "redundancy"
MAX_REPORTED = 1000  # tensors

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
    return () if parameters.scope == "row" else (RedundancyRequest(parameters),)


def coefficients_of(deltas: Tensor, parameters: DisentanglementParameters, context: MergeContext) -> Tensor:
    """Return the coefficients for a piece: [n] float64, or in row scope [n_rows, n].

    deltas: [n, n_rows, width] float32, whole rows of the task vectors.
    """
    if parameters.scope != "row":
        table: RedundancyTable = context.statistics[REDUNDANCY]
        return table.of(context.tensor).to(deltas.device)
    return disentangle.solve_redundancy(inner_products(deltas), parameters.descent)


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
