"""The singular values of task vectors: how many directions of each matrix a model uses.

Few directions that hold most of the energy are what low-rank patches and TSV-M live on; flat spectra are what
isotropic merging (Iso-C) makes.

Source: Gargiulo et al. 2024, arXiv:2412.00081 (TSV), section 3; Marczak et al. 2025, arXiv:2502.04959 (Iso), section 3.
"""

from statistics import fmean
from typing import Annotated, ClassVar

import torch
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field

from app.domain.errors import FieldProblem, InvalidParameters
from app.domain.parameters import MatrixChoice
from workers.analysis_contract import Found, Names, analysis
from workers.contract import PieceSource
from workers.figures import depth, lines, style
from workers.statistics import singular_values
from workers.statistics.layers import Layer, list_layers
from workers.statistics.singular_values import Spectrum

N_POINTS = 101  # of the energy curves


class SpectrumParameters(MatrixChoice):
    """Parameters of `spectrum`."""

    energy: Annotated[
        float, Field(gt=0.0, le=1.0, description="Share of the energy whose directions are counted, in (0, 1].")
    ] = 0.9
    n_values: Annotated[
        int, Field(ge=0, le=65_536, description="How many singular values of each matrix the report lists, at most.")
    ] = 64


class MatrixSpectrum(BaseModel):
    """One matrix of one model's task vector; a zero one has rank 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    norm: float = Field(description="Frobenius norm.")
    effective_rank: float = Field(description="exp of the entropy of the singular values over their sum.")
    stable_rank: float = Field(description="Squared Frobenius norm over the squared largest singular value.")
    rank_of_energy: int = Field(description="How few directions hold `energy` of the sum of squares.")
    singular_values: list[float] = Field(description="The largest `n_values`, largest first.")


class MatrixSpectra(BaseModel):
    """One matrix of all models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shape: tuple[int, int]
    models: list[MatrixSpectrum]


class LayerRanks(BaseModel):
    """Means over the matrices of one layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: Layer
    n_matrices: int
    effective_ranks: list[float] = Field(description="Of each model.")


class SpectrumFound(Found):
    """Means over all matrices, per model, and what they are means of."""

    only_in_file: ClassVar[frozenset[str]] = frozenset({"matrices"})

    n_matrices: int
    effective_ranks: list[float]
    stable_ranks: list[float]
    ranks_of_energy: list[float]
    energy_curves: list[list[float]] = Field(
        description="Per model: the share of the energy that the leading 0 %, 1 %, …, 100 % of the directions hold, "
        "mean over the matrices it changes; empty where it changes none."
    )
    layers: list[LayerRanks] = Field(description="In the order of the depth.")
    matrices: list[MatrixSpectra] = Field(description="Sorted by name.")


def draw(found: SpectrumFound, names: Names) -> Figure:
    """Return how fast the energy is gathered, and how many directions count over the depth."""
    figure, axes = style.new_figure(2, width=11.0, height=5.2)
    percent = [100.0 * point / (N_POINTS - 1) for point in range(N_POINTS)]
    curves = {name: curve for name, curve in zip(names.models, found.energy_curves, strict=True) if curve}
    lines.draw_lines(axes[0], percent, curves, has_markers=False)
    axes[0].set(xlabel="leading directions, %", ylabel="share of the energy", xlim=(0.0, 100.0), ylim=(0.0, 1.02))
    axes[0].set_title("Energy of the singular values")
    ranks = {name: [one.effective_ranks[index] for one in found.layers] for index, name in enumerate(names.models)}
    depth.draw_by_layer(axes[1], [one.layer for one in found.layers], ranks, has_legend=False)
    axes[1].set_ylim(bottom=0.0)
    axes[1].set_ylabel("directions, mean over matrices")
    axes[1].set_title("Effective rank by layer")
    return figure


@analysis(
    name="spectrum",
    title="Spectrum of task vectors",
    summary="Singular values of the task vectors' matrices: effective rank, stable rank, energy.",
    source="Gargiulo et al. 2024, arXiv:2412.00081, section 3",
    parameters=SpectrumParameters,
    found=SpectrumFound,
    draw=draw,
)
def examine(source: PieceSource, parameters: SpectrumParameters) -> SpectrumFound:
    """Return the spectra, one matrix in memory at a time on each thread.

    Raises: InvalidParameters where no tensor is a matrix.
    """
    spectra = list(singular_values.measure_spectra(source, parameters))
    if not spectra:
        fault = "fits every tensor of two dimensions, or there is none, so nothing has a spectrum; give other patterns"
        raise InvalidParameters(
            f"spectrum: dense_patterns {fault}.", errors=[FieldProblem("/parameters/dense_patterns", fault)]
        )
    found = [_describe(spectrum, parameters) for spectrum in spectra]
    by_name = {one.name: one for one in found}
    models = range(source.n_models)
    return SpectrumFound(
        n_matrices=len(found),
        effective_ranks=[fmean(one.models[model].effective_rank for one in found) for model in models],
        stable_ranks=[fmean(one.models[model].stable_rank for one in found) for model in models],
        ranks_of_energy=[fmean(one.models[model].rank_of_energy for one in found) for model in models],
        energy_curves=[_mean_curve(spectra, model) for model in models],
        layers=[
            LayerRanks(
                layer=layer,
                n_matrices=len(names),
                effective_ranks=[
                    fmean(by_name[name].models[model].effective_rank for name in names) for model in models
                ],
            )
            for layer, names in list_layers(by_name).items()
        ],
        matrices=found,
    )


def _describe(spectrum: Spectrum, parameters: SpectrumParameters) -> MatrixSpectra:
    return MatrixSpectra(
        name=spectrum.tensor,
        shape=spectrum.shape,
        models=[
            MatrixSpectrum(
                norm=float(values.square().sum().sqrt()),
                effective_rank=singular_values.effective_rank(values),
                stable_rank=singular_values.stable_rank(values),
                rank_of_energy=singular_values.rank_of_energy(values, parameters.energy),
                singular_values=values[: parameters.n_values].tolist(),
            )
            for values in spectrum.values
        ],
    )


def _mean_curve(spectra: list[Spectrum], model: int) -> list[float]:
    curves = [
        singular_values.energy_curve(spectrum.values[model], N_POINTS)
        for spectrum in spectra
        if spectrum.values[model, 0] > 0
    ]
    return [] if not curves else torch.stack(curves).mean(0).tolist()
