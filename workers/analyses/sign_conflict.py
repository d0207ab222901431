"""Sign conflict: where two models change an entry, how often does one raise it while the other lowers it?

Of two models a share of one half is what chance would give. Merging by sums or averages cancels such entries; TIES
elects one sign.

Source: Yadav et al. 2023, arXiv:2306.01708, section 3, figure 3; the trim is that of its section 4.1.
"""

from typing import Any, ClassVar

from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field

from app.domain.parameters import Density, Parameters, TrimScope
from workers.analysis_contract import Found, Names, analysis
from workers.contract import PieceSource
from workers.figures import depth, matrices, style
from workers.figures.matrices import Scale
from workers.numerics.numbers import ratio
from workers.statistics.layers import Layer, list_layers
from workers.statistics.sign_counts import CountSigns, SignCounts, total

Shares = list[list[float | None]]


class SignConflictParameters(Parameters):
    """Parameters of `sign_conflict`."""

    density: Density = 1.0
    trim_scope: TrimScope = "global"


class Conflict(BaseModel):
    """Counts of entries; one is changed by a model whose task vector (after the trim) is not zero there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_elements: int
    n_changed: int = Field(description="Changed by at least one model.")
    n_shared: int = Field(description="Changed by at least two models.")
    n_conflicting: int = Field(description="Raised by one model and lowered by another.")
    conflict_share: float | None = Field(description="n_conflicting / n_shared; null where nothing is shared.")
    chance_share: float | None = Field(description="What conflict_share would be if every sign were a coin's toss.")
    pairs: Shares = Field(
        description="[n, n]: of the entries that both models change, the share that they change in opposite directions."
    )


class LayerConflict(Conflict):
    """The counts of one layer."""

    layer: Layer


class TensorConflict(Conflict):
    """The counts of one tensor."""

    name: str


class SignConflictFound(Conflict, Found):
    """The counts over the whole model, by layer in the order of the depth, and by tensor."""

    only_in_file: ClassVar[frozenset[str]] = frozenset({"layers", "tensors"})

    n_both: list[list[int]] = Field(description="[n, n]: entries that both models change.")
    layers: list[LayerConflict]
    tensors: list[TensorConflict]


def draw(found: SignConflictFound, names: Names) -> Figure:
    """Return the shares by pair, and over the depth."""
    figure, axes = style.new_figure(2, width=11.0, height=5.2)
    pairs: Shares = [
        [None if row == column else share for column, share in enumerate(shares)]
        for row, shares in enumerate(found.pairs)
    ]
    scale = Scale(0.0, 1.0, style.DIVERGING, "opposed / changed by both")
    matrices.draw_matrix(axes[0], pairs, names.models, scale)
    axes[0].set_title("Opposite signs, by pair")
    layers = [one.layer for one in found.layers]
    series = {
        "found": [one.conflict_share for one in found.layers],
        "by chance": [one.chance_share for one in found.layers],
    }
    depth.draw_by_layer(axes[1], layers, series)
    axes[1].set_ylabel("conflicting / shared entries")
    axes[1].set_ylim(0.0, 1.02)
    axes[1].set_title("Sign conflict by layer")
    return figure


@analysis(
    name="sign_conflict",
    title="Sign conflict",
    summary="How often task vectors disagree on the sign of an entry: by pair, layer and tensor.",
    source="Yadav et al. 2023, arXiv:2306.01708, section 3",
    parameters=SignConflictParameters,
    found=SignConflictFound,
    draw=draw,
    models=(2, None),
    count_passes=lambda parameters: _counter(parameters).n_passes,
)
def examine(source: PieceSource, parameters: SignConflictParameters) -> SignConflictFound:
    """Return the counts: exact, whatever the pieces."""
    counts = _counter(parameters).collect(source)
    whole = total(counts.values(), source.n_models)
    return SignConflictFound(
        **_described(whole),
        n_both=whole.n_both.tolist(),
        layers=[
            LayerConflict(layer=layer, **_described(total((counts[name] for name in tensors), source.n_models)))
            for layer, tensors in list_layers(counts).items()
        ],
        tensors=[TensorConflict(name=name, **_described(one)) for name, one in counts.items()],
    )


def _counter(parameters: SignConflictParameters) -> CountSigns:
    return CountSigns(parameters.density, parameters.trim_scope)


def _described(counts: SignCounts) -> dict[str, Any]:  # the fields of Conflict
    pairs = [
        [ratio(opposed, both) for opposed, both in zip(*rows, strict=True)]
        for rows in zip(counts.n_opposed.tolist(), counts.n_both.tolist(), strict=True)
    ]
    return {
        "n_elements": int(counts.n_by_changers.sum()),
        "n_changed": int(counts.n_by_changers[1:].sum()),
        "n_shared": counts.n_shared,
        "n_conflicting": counts.n_conflicting,
        "conflict_share": ratio(counts.n_conflicting, counts.n_shared),
        "chance_share": ratio(counts.n_by_chance, counts.n_shared),
        "pairs": pairs,
    }
