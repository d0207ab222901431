"""Grids of coefficients in the plane of two task vectors: θ₀ + a τ₁ + b τ₂."""

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field

from app.domain.parameters import Parameters

Coefficient = Annotated[float, Field(ge=-100.0, le=100.0)]


class PlaneParameters(Parameters):
    """Which part of the plane is looked at, how finely, and on how many examples of each task."""

    low: Annotated[Coefficient, Field(description="Smallest coefficient of both task vectors.")] = -1.0
    high: Annotated[Coefficient, Field(description="Largest coefficient; above `low`.")] = 2.0
    n_steps: Annotated[int, Field(ge=2, le=101, description="Coefficients along each side of the grid.")] = 21
    max_examples: Annotated[
        int, Field(ge=1, le=1_000_000, description="Examples of each task at most, evenly spaced over the split.")
    ] = 64

    @property
    def coefficients(self) -> list[float]:
        """The coefficients along one side, rising."""
        step = (self.high - self.low) / (self.n_steps - 1)
        return [round(self.low + step * index, 12) for index in range(self.n_steps)]


def walk(coefficients: Sequence[float]) -> Iterator[tuple[int, int, float, float]]:
    """Yield (row, column, a, b) of every point: a along the columns, b along the rows."""
    for row, b in enumerate(coefficients):
        for column, a in enumerate(coefficients):
            yield row, column, a, b
