"""Representation Surgery: merge by any method, and correct per task the features that its head sees.

Source: Yang et al. 2024, arXiv:2402.02705, equations 3 and 4.
Departs from source: by default not the test split but the validation split is looked at; the features of both models
    are made once, and the modules of the tasks are learned one after the other (docs/methods/surgery.md).
"""

from collections.abc import Sequence

from torch import Tensor

from app.domain.catalog import ClassesNeed
from workers.contract import Learning, MergeContext, merge_method
from workers.learning.surgery import SHARED, LearnedModules, SurgeryParameters, learn_features
from workers.learning_contract import LearningSession
from workers.patches import UNCHANGED, Patch


def learn(parameters: SurgeryParameters, session: LearningSession) -> LearnedModules:
    """Return a module per task that brings the merge's features closer to those of the task's own model."""
    return learn_features(session, parameters)


def patch(
    _base: Tensor, finetuned: Tensor, _shared: Tensor, _parameters: SurgeryParameters, _context: MergeContext
) -> Sequence[Patch]:
    """Return, per model, that its weights are the shared ones; its module runs beside them."""
    return [UNCHANGED] * len(finetuned)


@merge_method(
    name="surgery",
    title="Representation Surgery",
    summary="Merges the models by any method and corrects, per task, the features before the head by a small module.",
    source="Yang et al. 2024, arXiv:2402.02705",
    aliases=("representation_surgery",),
    parameters=SurgeryParameters,
    base_model="required",
    models=(1, None),
    granularity="element",
    nested={SHARED: "merge_set"},
    patch=patch,
    patch_codec="module",
    learning=Learning(
        learn,
        data="unlabelled",
        needs_classes=ClassesNeed(why="corrects the features that a head of classes sees"),
    ),
)
def merge(base: Tensor, finetuned: Tensor, _parameters: SurgeryParameters, context: MergeContext) -> Tensor:
    """Return θ*, the merge that all tasks share. base: [m]; finetuned: [n, m]; result: [m]."""
    return context.nested[SHARED](base, finetuned, context)
