"""Merging adapter folders into an adapter through the pipeline, and what the result makes of a base."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.domain.adapters import AdapterSpace, as_dense
from app.domain.catalog import load_catalog
from app.domain.checkpoints import LocalCheckpoint
from app.domain.jobs import Progress
from app.domain.planning import plan_merge
from app.domain.plans import MergePlan
from app.domain.recipes import Recipe, RecipeModel, pin
from tests.workers.files import ignore
from workers.catalog import load_adapter_recipe
from workers.checkpoints.adapters import AdapterReader
from workers.checkpoints.reader import TensorReader
from workers.pipelines.importing import import_checkpoint


@dataclass(frozen=True)
class AdapterMerge:
    """A method with all it needs, ready to merge adapters into one."""

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)  # any method's, as JSON
    weights: Sequence[float] = ()
    space: AdapterSpace | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the recipe
    on_progress: Callable[[Progress], None] = ignore

    def plan(self, base: LocalCheckpoint, models: Sequence[LocalCheckpoint]) -> tuple[Recipe, MergePlan]:
        """Return the recipe and its plan."""
        weights = self.weights or [1.0] * len(models)
        card, parameters = load_catalog().check(self.method, self.parameters, has_base_model=True, weights=weights)
        recipe = Recipe(
            method=card.name,
            method_version=card.version,
            base_model=pin(base),
            models=tuple(
                RecipeModel(**pin(model).model_dump(), weight=weight)
                for model, weight in zip(models, weights, strict=True)
            ),
            parameters=parameters,
            shard_bytes=5_000_000_000,
            adapter_space=self.space,
            **self.changes,
        )
        return recipe, plan_merge(recipe, base.manifest, [model.manifest for model in models], card)

    def report(
        self, base: LocalCheckpoint, models: Sequence[LocalCheckpoint], output: Path
    ) -> tuple[LocalCheckpoint, dict[str, Any]]:
        """Merge into the folder `output`; return the adapter and the report."""
        recipe, plan = self.plan(base, models)
        output.mkdir(parents=True)
        name = "lora_extraction" if self.method == "lora_extract" else "adapter_merge"
        manifest, report = import_module(f"workers.pipelines.{name}").merge_adapters(
            plan,
            load_adapter_recipe(recipe),
            recipe=recipe,
            base=base,
            models=models,
            output=output,
            on_progress=self.on_progress,
        )
        imported = import_checkpoint(output, ignore)
        beside = {"recipe.json", "README.md"}
        assert manifest.model_copy(update={"files": imported.files}) == imported, "the manifest is what an import finds"
        assert beside < {file.path for file in manifest.files}
        return LocalCheckpoint(id=output.name, path=output, manifest=manifest), report

    def __call__(self, base: LocalCheckpoint, models: Sequence[LocalCheckpoint], output: Path) -> LocalCheckpoint:
        """Merge into the folder `output` and return the adapter."""
        return self.report(base, models, output)[0]


def read_fused(adapter: LocalCheckpoint, base: LocalCheckpoint) -> dict[str, Tensor]:
    """Return the dense model that an adapter makes of a base."""
    tensors: dict[str, Tensor] = {}
    with TensorReader(base) as files, AdapterReader(adapter, files) as reader:
        for spec in as_dense(adapter.manifest, base.manifest).tensors:
            out = torch.empty(spec.n_elements)
            assert reader.read_floats(spec, 0, out)
            tensors[spec.name] = out.view(spec.shape)
    return tensors
