"""Weight disentanglement: does adding another task's vector leave a task's predictions as they were?

Where the error is low over a wide region around the merge, task arithmetic works; linearized fine-tuning widens it.

Source: Ortiz-Jimenez et al. 2023, arXiv:2305.12827, equation 6:
    ξ(α₁, α₂) = Σₜ E_{x ∈ Dₜ}[ pred(x; θ₀ + αₜ τₜ) ≠ pred(x; θ₀ + α₁ τ₁ + α₂ τ₂) ].
Departs from source: on evenly spaced examples of the split; ξ is also given for each task alone.
"""

from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from workers.analysis_contract import Bench, Found, Names, analysis
from workers.figures import planes, style
from workers.figures.matrices import Scale
from workers.statistics.planes import PlaneParameters, walk

Grid = list[list[float]]


class DisentanglementParameters(PlaneParameters):
    """Parameters of `disentanglement_error`."""


class DisentanglementFound(Found):
    """Grids [n_steps, n_steps]: rows are coefficients α₂ of models[1], columns coefficients α₁ of models[0]."""

    coefficients: list[float] = Field(description="Along both sides, rising.")
    errors: list[Grid] = Field(
        description="Per task: share of examples whose predicted class the other vector changes."
    )
    error: Grid = Field(description="ξ: the sum over both tasks, in [0, 2].")
    mean_error: float = Field(description="Mean of ξ over the grid.")
    mean_error_within: float | None = Field(
        description="Mean of ξ over the points with both coefficients in [0, 1], where merges lie; null without any."
    )
    n_examples: list[int] = Field(description="Per task.")


def draw(found: DisentanglementFound, names: Names) -> Figure:
    """Return the map of ξ, and of each task's part."""
    figure, axes = style.new_figure(3, width=15.0, height=5.2)
    most = max(0.1, max(map(max, found.error)))  # one scale for all panels
    planes.draw_plane(
        axes[0], found.coefficients, found.error, Scale(0.0, most, style.SEQUENTIAL, "ξ"), has_contours=False
    )
    axes[0].set_title("Disentanglement error ξ")
    for panel, errors, task in zip(axes[1:], found.errors, names.tasks, strict=True):
        planes.draw_plane(
            panel,
            found.coefficients,
            errors,
            Scale(0.0, most, style.SEQUENTIAL, "changed predictions"),
            has_contours=False,
        )
        panel.set_title(f"of {style.shorten(task)}")
    for panel in axes:
        planes.frame_merges(panel)
        planes.label(panel, names.models)
    return figure


@analysis(
    name="disentanglement_error",
    title="Weight disentanglement error",
    summary="How often one task's vector changes what is predicted on the other task, on a grid of coefficients.",
    source="Ortiz-Jimenez et al. 2023, arXiv:2305.12827, equation 6",
    parameters=DisentanglementParameters,
    found=DisentanglementFound,
    draw=draw,
    models=(2, 2),
    tasks="one_per_model",
    observes=True,
)
def examine(bench: Bench, parameters: DisentanglementParameters) -> DisentanglementFound:
    """Return the grids: the predictions of each task vector alone first, then those of every pair of coefficients."""
    coefficients = parameters.coefficients
    n = len(coefficients)
    bench.expect(2 * n + 2 * n * n)
    alone: list[list[Tensor]] = [[], []]  # per task, per coefficient: predicted classes [n_examples]
    for coefficient in coefficients:
        for task, pair in enumerate(((coefficient, 0.0), (0.0, coefficient))):
            with bench.combine(pair) as merged:
                alone[task].append(merged.classify(task, parameters.max_examples).logits.argmax(-1))
    errors = [[[0.0] * n for _ in range(n)] for _ in range(2)]
    for row, column, a, b in walk(coefficients):
        with bench.combine((a, b)) as merged:
            for task, index in enumerate((column, row)):
                together = merged.classify(task, parameters.max_examples).logits.argmax(-1)
                errors[task][row][column] = float((together != alone[task][index]).double().mean())
    error = [[first + second for first, second in zip(*rows, strict=True)] for rows in zip(*errors, strict=True)]
    inside = [place for place, coefficient in enumerate(coefficients) if 0.0 <= coefficient <= 1.0]
    within = [error[row][column] for row in inside for column in inside]
    return DisentanglementFound(
        coefficients=coefficients,
        errors=errors,
        error=error,
        mean_error=sum(map(sum, error)) / n**2,
        mean_error_within=sum(within) / len(within) if within else None,
        n_examples=[len(predictions[0]) for predictions in alone],
    )
