"""SurgeryV2: merge by any method, and correct per task what every block of the merged model gives.

Source: Yang et al. 2024, arXiv:2410.14389 (deep representation surgery).
Departs from source: by default not the test split but the validation split is looked at; the modules of all blocks
    learn at once, each behind those before it (docs/methods/surgery_v2.md).
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from app.domain.catalog import ClassesNeed
from workers.contract import Learning, MergeContext, merge_method
from workers.learning.surgery import SHARED, LearnedModules, SurgeryParameters, learn_blocks
from workers.learning_contract import LearningSession
from workers.patches import UNCHANGED, Patch


class SurgeryV2Parameters(SurgeryParameters):
    """Parameters of `surgery_v2`."""

    steps: Annotated[int, Field(ge=0, le=100_000, description="Steps of Adam for each task, each over one batch.")] = (
        500
    )


def learn(parameters: SurgeryV2Parameters, session: LearningSession) -> LearnedModules:
    """Return modules per task that bring what the merge's blocks give closer to those of the task's own model."""
    return learn_blocks(session, parameters)


def patch(
    _base: Tensor, finetuned: Tensor, _shared: Tensor, _parameters: SurgeryV2Parameters, _context: MergeContext
) -> Sequence[Patch]:
    """Return, per model, that its weights are the shared ones; its modules run beside them."""
    return [UNCHANGED] * len(finetuned)


@merge_method(
    name="surgery_v2",
    title="SurgeryV2",
    summary="Merges the models by any method and corrects, per task, what each block gives by small modules.",
    source="Yang et al. 2024, arXiv:2410.14389",
    aliases=("deep_representation_surgery",),
    parameters=SurgeryV2Parameters,
    base_model="required",
    models=(1, None),
    granularity="element",
    nested={SHARED: "merge_set"},
    patch=patch,
    patch_codec="module",
    learning=Learning(
        learn,
        data="unlabelled",
        needs_classes=ClassesNeed(why="leaves modules that evaluations of classification alone run with"),
    ),
)
def merge(base: Tensor, finetuned: Tensor, _parameters: SurgeryV2Parameters, context: MergeContext) -> Tensor:
    """Return θ*, the merge that all tasks share. base: [m]; finetuned: [n, m]; result: [m]."""
    return context.nested[SHARED](base, finetuned, context)
