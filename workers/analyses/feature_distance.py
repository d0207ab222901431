"""The distance of a merge's features to those of each task's own model: what representation surgery takes away.

Source: Yang et al. 2024, arXiv:2402.02705 (Representation Surgery), equation 2: the mean absolute difference of
    features over the examples of the task and the feature's dimensions.
Departs from source: on evenly spaced examples of the split; the base model's distance and the cosine stand beside.
"""

from typing import Annotated

from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from app.domain.errors import HeadMismatch
from app.domain.parameters import NestedMethod, Parameters
from workers.analysis_contract import Bench, Found, Merged, Names, analysis
from workers.figures import bars, style
from workers.numerics.numbers import optional


class FeatureDistanceParameters(Parameters):
    """Parameters of `feature_distance`."""

    merge: Annotated[NestedMethod, Field(description="How the models are merged.")] = NestedMethod(
        method="task_arithmetic"
    )
    max_examples: Annotated[
        int, Field(ge=1, le=1_000_000, description="Examples of each task at most, evenly spaced over the split.")
    ] = 256


class Distance(BaseModel):
    """How far a model's features lie from those of the task's own model; null where they are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    l1: float | None = Field(description="Mean absolute difference, over examples and dimensions.")
    l2: float | None = Field(description="Mean over the examples of the length of the difference.")
    relative_l2: float | None = Field(description="The same over the mean length of the own model's features.")
    cosine: float | None = Field(description="Mean over the examples.")


class TaskDistance(BaseModel):
    """The distances on one task's examples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_examples: int
    width: int = Field(description="Dimensions of a feature.")
    merged: Distance
    base: Distance


class FeatureDistanceFound(Found):
    """Distances by task, in the request's order."""

    distances: list[TaskDistance]


def draw(found: FeatureDistanceFound, names: Names) -> Figure:
    """Return the mean absolute difference on each task, of the base model and of the merge."""
    figure, (axes,) = style.new_figure(1, width=max(7.0, 2.0 + 1.2 * len(names.tasks)), height=5.2)
    groups = {
        "base model": [one.base.l1 for one in found.distances],
        "merge": [one.merged.l1 for one in found.distances],
    }
    bars.draw_bars(axes, names.tasks, groups)
    axes.set_ylabel("mean |difference of features|")
    axes.set_title("Distance to each task's own model")
    return figure


@analysis(
    name="feature_distance",
    title="Feature distance",
    summary="How far a merge's features lie from those of each task's own model.",
    source="Yang et al. 2024, arXiv:2402.02705, equation 2",
    parameters=FeatureDistanceParameters,
    found=FeatureDistanceFound,
    draw=draw,
    models=(1, None),
    tasks="one_per_model",
    observes=True,
    nested=("merge",),
    takes_merged=True,
)
def examine(bench: Bench, parameters: FeatureDistanceParameters) -> FeatureDistanceFound:
    """Return the distances.

    Raises: HeadMismatch for a task with the checkpoint's own head, under which models give no features, or where the
        merge gives others than the models.
    """
    tasks = range(bench.n_tasks)
    bench.expect(3 * bench.n_tasks)
    with bench.take(parameters.merge) as merged:
        of_merge = [_features(merged, task, parameters) for task in tasks]
    with bench.combine([0.0] * bench.n_models) as merged:
        of_base = [_features(merged, task, parameters) for task in tasks]
    found: list[TaskDistance] = []
    for task in tasks:
        with bench.combine([float(index == task) for index in range(bench.n_models)]) as merged:
            own = _features(merged, task, parameters)  # [n, width]
        n_examples, width = own.shape
        found.append(
            TaskDistance(
                n_examples=n_examples,
                width=width,
                merged=_distance(of_merge[task], own),
                base=_distance(of_base[task], own),
            )
        )
    return FeatureDistanceFound(distances=found)


def _features(merged: Merged, task: int, parameters: FeatureDistanceParameters) -> Tensor:
    return merged.embed(task, parameters.max_examples).double()


def _distance(features: Tensor, own: Tensor) -> Distance:
    if features.shape != own.shape:
        raise HeadMismatch(
            f"The merge gives features of {features.shape[1]} dimensions, and the task's own model of {own.shape[1]}, "
            "expected as many; name a merge of these models."
        )
    difference = features - own
    length = difference.norm(dim=1).mean()
    return Distance(
        l1=optional(difference.abs().mean()),
        l2=optional(length),
        relative_l2=optional(length / own.norm(dim=1).mean()),
        cosine=optional(functional.cosine_similarity(features, own, dim=1).mean()),
    )
