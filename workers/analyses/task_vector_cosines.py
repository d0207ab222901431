"""The cosines of task vectors: near 0 the models moved the base model in unrelated directions and merge well; near 1
they did the same; below 0 they undo each other.

Source: Ilharco et al. 2022, arXiv:2212.04089, section 3.2, figure 5; AWD (arXiv:2411.18729) minimizes their mean.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from app.domain.parameters import NestedStep, Parameters
from workers.analysis_contract import Found, Names, analysis
from workers.contract import PieceSource
from workers.figures import depth, matrices, style
from workers.figures.matrices import Scale
from workers.numerics.numbers import optional, optional_rows
from workers.statistics import gram
from workers.statistics.layers import Layer, list_layers

Cosines = list[list[float | None]]


class CosineParameters(Parameters):
    """Parameters of `task_vector_cosines`."""

    transforms: Annotated[
        tuple[NestedStep, ...],
        Field(
            max_length=16,
            description="Of GET /v1/transforms, such as awd: the cosines that they leave are found beside the others.",
        ),
    ] = ()


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


class ChangedCosines(BaseModel):
    """The same of the task vectors as transforms leave them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    norms: list[float]
    cosines: Cosines
    mean_cosine: float | None
    mean_absolute_cosine: float | None


class CosinesFound(Found):
    """Cosines of the flattened task vectors, [n, n] over the models; null where a task vector is zero."""

    only_in_file: ClassVar[frozenset[str]] = frozenset({"layers", "tensors", "changed_layers", "changed_tensors"})

    norms: list[float] = Field(description="Length of each task vector.")
    cosines: Cosines
    mean_cosine: float | None = Field(description="Mean over all pairs of two models.")
    mean_absolute_cosine: float | None
    n_tensors: int
    n_parameters: int
    layers: list[LayerCosines] = Field(description="In the order of the depth.")
    tensors: list[TensorCosines] = Field(description="Sorted by name.")
    changed: ChangedCosines | None = Field(description="Of the task vectors behind `transforms`; null without any.")
    changed_layers: list[LayerCosines] = Field(description="Likewise; empty without transforms.")
    changed_tensors: list[TensorCosines]


def draw(found: CosinesFound, names: Names) -> Figure:
    """Return the matrix of cosines, before and after transforms; and of two models or more, how alike layers are."""
    has_pairs = len(names.models) > 1
    shown = {"Cosines of task vectors": found.cosines}
    if found.changed is not None:
        shown = {"Before the transforms": found.cosines, "After them": found.changed.cosines}
    n_panels = len(shown) + has_pairs
    figure, axes = style.new_figure(n_panels, width=5.5 * n_panels if n_panels > 1 else 6.0, height=5.2)
    for panel, (title, cosines) in zip(axes, shown.items(), strict=False):
        matrices.draw_matrix(panel, cosines, names.models, Scale(-1.0, 1.0, style.DIVERGING, "cosine"))
        panel.set_title(title)
    if has_pairs:
        layers = [one.layer for one in found.layers]
        depth.draw_by_layer(axes[-1], layers, _by_layer(found))
        axes[-1].axhline(0.0, color=style.FAINT, linewidth=1.0, zorder=0)
        axes[-1].set_ylabel("cosine")
        axes[-1].set_title("Over pairs, by layer")
    return figure


def _by_layer(found: CosinesFound) -> dict[str, list[float | None]]:
    if found.changed is not None:
        return {
            "|cosine|, before": [one.mean_absolute_cosine for one in found.layers],
            "|cosine|, after": [one.mean_absolute_cosine for one in found.changed_layers],
        }
    return {
        "mean of cosine": [one.mean_cosine for one in found.layers],
        "mean of |cosine|": [one.mean_absolute_cosine for one in found.layers],
    }


@analysis(
    name="task_vector_cosines",
    title="Cosines of task vectors",
    summary="How alike the models' changes are: over the whole model, by layer and by tensor; also behind transforms.",
    source="Ilharco et al. 2022, arXiv:2212.04089, section 3.2",
    parameters=CosineParameters,
    found=CosinesFound,
    draw=draw,
    steps=("transforms",),
    version=3,
)
def examine(source: PieceSource, _parameters: CosineParameters, changed: PieceSource | None = None) -> CosinesFound:
    """Return the cosines, from inner products in float64. changed: the source through the transforms."""
    found = _find(source)
    after = None if changed is None else _find(changed)
    return CosinesFound(
        **vars(found.whole),
        n_tensors=len(source.tensors),
        n_parameters=sum(shape.numel() for shape in (torch.Size(shape) for _, shape, _ in source.tensors)),
        layers=found.layers,
        tensors=found.tensors,
        changed=None if after is None else after.whole,
        changed_layers=[] if after is None else after.layers,
        changed_tensors=[] if after is None else after.tensors,
    )


@dataclass(frozen=True)
class _FoundOf:
    """What is found of one source."""

    whole: ChangedCosines
    layers: list[LayerCosines]
    tensors: list[TensorCosines]


def _find(source: PieceSource) -> _FoundOf:
    grams = gram.gram_matrices(source)
    whole = _sum(grams.values(), source.n_models)
    cosines = gram.cosines(whole)
    return _FoundOf(
        ChangedCosines(
            norms=whole.diagonal().sqrt().tolist(),
            cosines=optional_rows(cosines),
            mean_cosine=_mean_of_pairs(cosines),
            mean_absolute_cosine=_mean_of_pairs(cosines.abs()),
        ),
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
