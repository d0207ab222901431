"""How far each model moved from the base model, over its depth.

Early layers usually move little and late ones much; LiNeS scales a merge by that. A layer where one model moves far
more than the others is one that it will dominate.

Source: Wang et al. 2024, arXiv:2410.17146 (LiNeS), section 3, figure 2.
"""

from math import sqrt
from typing import Any, ClassVar

from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field

from app.domain.parameters import Parameters
from workers.analysis_contract import Found, Names, analysis
from workers.contract import PieceSource
from workers.figures import depth, style
from workers.numerics.numbers import ratio
from workers.statistics.energies import Energy, measure_energies, nothing
from workers.statistics.layers import Layer, list_layers


class NormsParameters(Parameters):
    """Parameters of `norms_by_layer`: none."""


class Norms(BaseModel):
    """Lengths over some entries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_norm: float = Field(description="Length of the base model.")
    norms: list[float] = Field(description="Length of each model's task vector.")
    relative_norms: list[float | None] = Field(description="norms / base_norm; null where the base is zero.")


class LayerNorms(Norms):
    """The lengths in one layer."""

    layer: Layer


class TensorNorms(Norms):
    """The lengths in one tensor."""

    name: str


class NormsFound(Norms, Found):
    """The lengths over the whole model, by layer in the order of the depth, and by tensor."""

    only_in_file: ClassVar[frozenset[str]] = frozenset({"tensors"})

    layers: list[LayerNorms]
    tensors: list[TensorNorms]


def draw(found: NormsFound, names: Names) -> Figure:
    """Return the length of each task vector over the depth, as it is and relative to the base model."""
    figure, axes = style.new_figure(2, width=11.0, height=5.2)
    layers = [one.layer for one in found.layers]
    for panel, field, title in (
        (axes[0], "norms", "Norms of task vectors"),
        (axes[1], "relative_norms", "Relative to the base model"),
    ):
        series = {name: [getattr(one, field)[index] for one in found.layers] for index, name in enumerate(names.models)}
        depth.draw_by_layer(panel, layers, series, has_legend=panel is axes[0])
        panel.set_ylim(bottom=0.0)
        panel.set_title(title)
    axes[0].set_ylabel("‖τ‖")
    axes[1].set_ylabel("‖τ‖ / ‖θ₀‖")
    return figure


@analysis(
    name="norms_by_layer",
    title="Norms by layer",
    summary="How far each model moved from the base model: over the depth, and by tensor.",
    source="Wang et al. 2024, arXiv:2410.17146, section 3",
    parameters=NormsParameters,
    found=NormsFound,
    draw=draw,
)
def examine(source: PieceSource, _parameters: NormsParameters) -> NormsFound:
    """Return the lengths, from squares summed in float64."""
    energies = measure_energies(source)
    start = nothing(source.n_models)
    return NormsFound(
        **_described(sum(energies.values(), start=start)),
        layers=[
            LayerNorms(layer=layer, **_described(sum((energies[name] for name in tensors), start=start)))
            for layer, tensors in list_layers(energies).items()
        ],
        tensors=[TensorNorms(name=name, **_described(energy)) for name, energy in energies.items()],
    )


def _described(energy: Energy) -> dict[str, Any]:  # the fields of Norms
    base_norm, norms = sqrt(energy.base), energy.deltas.sqrt().tolist()
    return {
        "base_norm": base_norm,
        "norms": norms,
        "relative_norms": [ratio(norm, base_norm) for norm in norms],
    }
