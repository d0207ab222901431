"""The cosines of task vectors: near 0 the models moved the base model in unrelated directions and merge well; near 1
they did the same; below 0 they undo each other.

Source: Ilharco et al. 2022, arXiv:2212.04089, section 3.2, figure 5; AWD (arXiv:2411.18729) minimizes their mean.
"""

from collections.abc import Iterable
from typing import ClassVar

import torch
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from app.domain.parameters import Parameters
from workers.analysis_contract import Found, Names, analysis
from workers.contract import PieceSource
from workers.figures import depth, matrices, style
from workers.figures.matrices import Scale
from workers.numerics.numbers import optional, optional_rows
from workers.statistics import gram
from workers.statistics.layers import Layer, list_layers

Cosines = list[list[float | None]]


class CosineParameters(Parameters):
    """Parameters of `task_vector_cosines`: none."""


class LayerCosines(BaseModel):
    """Cosines within one layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: Layer
    mean_cosine: float | None
    mean_absolute_cosine: float | None
    cosines: Cosines


class TensorCosines(BaseModel):
    """Cosines within one tensor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    norms: list[float] = Field(description="Length of each model's task vector in this tensor.")
    cosines: Cosines


class CosinesFound(Found):
    """Cosines of the flattened task vectors, [n, n] over the models; null where a task vector is zero."""

    only_in_file: ClassVar[frozenset[str]] = frozenset({"layers", "tensors"})

    norms: list[float] = Field(description="Length of each task vector.")
    cosines: Cosines
    mean_cosine: float | None = Field(description="Mean over all pairs of two models.")
    mean_absolute_cosine: float | None
    n_tensors: int
    n_parameters: int
    layers: list[LayerCosines] = Field(description="In the order of the depth.")
    tensors: list[TensorCosines] = Field(description="Sorted by name.")


def draw(found: CosinesFound, names: Names) -> Figure:
    """Return the matrix of cosines and, of two models or more, how alike they are in each layer."""
    has_pairs = len(names.models) > 1
    figure, axes = style.new_figure((2 if has_pairs else 1), width=11.0 if has_pairs else 6.0, height=5.2)
    matrices.draw_matrix(axes[0], found.cosines, names.models, Scale(-1.0, 1.0, style.DIVERGING, "cosine"))
    axes[0].set_title("Cosines of task vectors")
    if has_pairs:
        layers = [one.layer for one in found.layers]
        series = {
            "mean of cosine": [one.mean_cosine for one in found.layers],
            "mean of |cosine|": [one.mean_absolute_cosine for one in found.layers],
        }
        depth.draw_by_layer(axes[1], layers, series)
        axes[1].axhline(0.0, color=style.FAINT, linewidth=1.0, zorder=0)
        axes[1].set_ylabel("cosine")
        axes[1].set_title("Over pairs, by layer")
    return figure


@analysis(
    name="task_vector_cosines",
    title="Cosines of task vectors",
    summary="How alike the models' changes are: over the whole model, by layer and by tensor.",
    source="Ilharco et al. 2022, arXiv:2212.04089, section 3.2",
    parameters=CosineParameters,
    found=CosinesFound,
    draw=draw,
    version=2,
)
def examine(source: PieceSource, _parameters: CosineParameters) -> CosinesFound:
    """Return the cosines, from inner products in float64."""
    grams = gram.gram_matrices(source)
    whole = _sum(grams.values(), source.n_models)
    cosines = gram.cosines(whole)
    return CosinesFound(
        norms=whole.diagonal().sqrt().tolist(),
        cosines=optional_rows(cosines),
        mean_cosine=_mean_of_pairs(cosines),
        mean_absolute_cosine=_mean_of_pairs(cosines.abs()),
        n_tensors=len(grams),
        n_parameters=sum(shape.numel() for shape in (torch.Size(shape) for _, shape, _ in source.tensors)),
        layers=[
            _of_layer(layer, _sum((grams[name] for name in tensors), source.n_models))
            for layer, tensors in list_layers(grams).items()
        ],
        tensors=[
            TensorCosines(
                name=name, norms=matrix.diagonal().sqrt().tolist(), cosines=optional_rows(gram.cosines(matrix))
            )
            for name, matrix in grams.items()
        ],
    )


def _sum(grams: Iterable[Tensor], n_models: int) -> Tensor:
    return sum(grams, start=torch.zeros(n_models, n_models, dtype=torch.float64))


def _of_layer(layer: Layer, matrix: Tensor) -> LayerCosines:
    cosines = gram.cosines(matrix)
    return LayerCosines(
        layer=layer,
        mean_cosine=_mean_of_pairs(cosines),
        mean_absolute_cosine=_mean_of_pairs(cosines.abs()),
        cosines=optional_rows(cosines),
    )


def _mean_of_pairs(cosines: Tensor) -> float | None:
    """Return the mean over the pairs of two models whose cosine is defined; None where there is none."""
    pairs = cosines[~torch.eye(len(cosines), dtype=torch.bool)]
    return optional(pairs[pairs.isfinite()].mean())
