"""The loss and the metric in the plane of two task vectors: is there a basin that both tasks share, and where?

Source: Tang et al. 2023, arXiv:2310.04742 (L-LoRA), section 3, figure 2; the grid is θ₀ + a τ₁ + b τ₂.
Departs from source: losses are computed on evenly spaced examples of the split, not on a drawn batch.
"""

from matplotlib.figure import Figure
from pydantic import Field
from torch.nn import functional

from workers.analysis_contract import Bench, Classified, Found, Names, analysis
from workers.figures import planes, style
from workers.figures.matrices import Scale
from workers.numerics.numbers import optional
from workers.statistics.planes import PlaneParameters, walk

Grid = list[list[float | None]]


class LossLandscapeParameters(PlaneParameters):
    """Parameters of `loss_landscape`."""


class LossLandscapeFound(Found):
    """Grids [n_steps, n_steps]: rows are coefficients b of models[1], columns coefficients a of models[0]."""

    coefficients: list[float] = Field(description="Along both sides, rising.")
    losses: list[Grid] = Field(description="Per task: mean cross-entropy, in nats.")
    accuracies: list[Grid] = Field(description="Per task: share of examples whose largest logit is the right one.")
    total_loss: Grid = Field(description="Sum over the tasks.")
    mean_accuracy: Grid = Field(description="Mean over the tasks.")
    best: tuple[float, float] = Field(description="(a, b) of the lowest total loss.")
    n_examples: list[int] = Field(description="Per task.")


def draw(found: LossLandscapeFound, names: Names) -> Figure:
    """Return the total loss, its contours and where the base model, both models and their sum lie; and the accuracy."""
    figure, axes = style.new_figure(2, width=12.0, height=5.4)
    what = "loss" if len(names.tasks) == 1 else f"sum of {len(names.tasks)} losses"
    planes.draw_plane(axes[0], found.coefficients, found.total_loss, Scale.of(found.total_loss, "cividis_r", what))
    planes.draw_plane(
        axes[1], found.coefficients, found.mean_accuracy, Scale.of(found.mean_accuracy, "cividis", "mean accuracy")
    )
    for panel, title in zip(axes, ("Loss (★ lowest)", "Accuracy (★ lowest loss)"), strict=True):
        planes.mark(panel, {"θ₀": (0.0, 0.0), "θ₁": (1.0, 0.0), "θ₂": (0.0, 1.0), "sum": (1.0, 1.0)}, found.best)
        planes.label(panel, names.models)
        panel.set_title(title)
    return figure


@analysis(
    name="loss_landscape",
    title="Loss landscape",
    summary="Loss and accuracy on a grid in the plane of two task vectors.",
    source="Tang et al. 2023, arXiv:2310.04742, section 3",
    parameters=LossLandscapeParameters,
    found=LossLandscapeFound,
    draw=draw,
    models=(2, 2),
    tasks="any",
    observes=True,
)
def examine(bench: Bench, parameters: LossLandscapeParameters) -> LossLandscapeFound:
    """Return the grids: one merge per point, run on every task."""
    coefficients = parameters.coefficients
    n = len(coefficients)
    tasks = range(bench.n_tasks)
    losses: list[Grid] = [[[None] * n for _ in range(n)] for _ in tasks]
    accuracies: list[Grid] = [[[None] * n for _ in range(n)] for _ in tasks]
    n_examples = [0] * bench.n_tasks
    bench.expect(n * n * bench.n_tasks)
    for row, column, a, b in walk(coefficients):
        with bench.combine((a, b)) as merged:
            for task in tasks:
                found = merged.classify(task, parameters.max_examples)
                losses[task][row][column], accuracies[task][row][column] = _score(found)
                n_examples[task] = len(found.labels)
    total = [[_sum([grid[row][column] for grid in losses]) for column in range(n)] for row in range(n)]
    scores = [[_sum([grid[row][column] for grid in accuracies]) for column in range(n)] for row in range(n)]
    known = [
        (loss, row, column) for row, line in enumerate(total) for column, loss in enumerate(line) if loss is not None
    ]
    _, row, column = min(known, default=(0.0, 0, 0))
    return LossLandscapeFound(
        coefficients=coefficients,
        losses=losses,
        accuracies=accuracies,
        total_loss=total,
        mean_accuracy=[[None if cell is None else cell / bench.n_tasks for cell in line] for line in scores],
        best=(coefficients[column], coefficients[row]),
        n_examples=n_examples,
    )


def _score(found: Classified) -> tuple[float | None, float | None]:
    """Return mean cross-entropy and accuracy; None where the model gives no numbers."""
    logits = found.logits.double()
    if not bool(logits.isfinite().all()):
        return None, None
    loss = functional.cross_entropy(logits, found.labels)
    hits = logits.argmax(-1) == found.labels
    return optional(loss), optional(hits.double().mean())


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
