"""What tests of the merge pipeline need: a method of their own, recipes, plans, a merge in one call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from torch import Tensor

from app.domain.checkpoints import LocalCheckpoint, Manifest
from app.domain.jobs import Progress
from app.domain.parameters import Parameters
from app.domain.plans import MergePlan, make_plan
from app.domain.recipes import Recipe, RecipeModel, pin
from tests.workers.files import ignore
from workers.contract import MergeContext, MergeMethod, RecipeCode, merge_method
from workers.pipelines.merge import merge_checkpoints


class ProbeParameters(Parameters):
    """No parameters."""


def method_of(function: Callable[..., Tensor], **changes: Any) -> MergeMethod:
    """Return a merge method around a function of (base, finetuned, parameters, context)."""
    card = {
        "name": "probe", "title": "Probe", "summary": "For tests.", "source": "None", "parameters": ProbeParameters,
        "base_model": "required", "models": (1, None), "granularity": "element", **changes,
    }  # fmt: skip
    return merge_method(**card)(function)


def add_all(base: Tensor, finetuned: Tensor, _parameters: Parameters, _context: MergeContext) -> Tensor:
    """Return the base plus all task vectors."""
    total = base.clone()
    for model in finetuned:
        total += model - base
    return total


ADD_ALL = method_of(add_all)


@dataclass(frozen=True)
class PlannedMerge:
    """A merge that is planned and can be run."""

    method: MergeMethod
    base: LocalCheckpoint | None
    models: Sequence[LocalCheckpoint]
    recipe: Recipe
    plan: MergePlan

    def run(
        self, output: Path, on_progress: Callable[[Progress], None] = ignore, **options: Any
    ) -> tuple[Manifest, dict[str, JsonValue]]:
        """Merge into `output`, which is made."""
        output.mkdir(parents=True)
        return merge_checkpoints(
            self.plan,
            RecipeCode(self.method),
            recipe=self.recipe,
            base=self.base,
            models=self.models,
            output=output,
            on_progress=on_progress,
            **options,
        )


@dataclass(frozen=True)
class MergeOf:
    """Plans merges of a method; `changes` go into the recipe."""

    method: MergeMethod = ADD_ALL
    changes: dict[str, Any] = field(default_factory=dict)

    def plan(self, base: LocalCheckpoint | None, *models: LocalCheckpoint) -> PlannedMerge:
        """Return the planned merge of the models into the base."""
        values = {
            "method": self.method.card.name,
            "method_version": 1,
            "base_model": None if base is None else pin(base),
            "models": tuple(RecipeModel(**pin(model).model_dump()) for model in models),
            "parameters": {},
            "shard_bytes": 5_000_000_000,
            **self.changes,
        }
        recipe = Recipe.model_validate(values)
        manifests = [model.manifest for model in models]
        plan = make_plan(recipe, None if base is None else base.manifest, manifests, self.method.card)
        return PlannedMerge(self.method, base, models, recipe, plan)
