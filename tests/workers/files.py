"""Merging checkpoint folders through the pipeline, for laws that are about files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from app.domain.catalog import load_catalog
from app.domain.checkpoints import LocalCheckpoint, Manifest
from app.domain.jobs import Progress
from app.domain.patches import BASE_FILE
from app.domain.plans import MergePlan, make_plan
from app.domain.recipes import Override, PinnedStep, Recipe, RecipeModel, pin
from app.domain.sums import SUMS_FILE
from workers.catalog import load_recipe
from workers.numerics import fused
from workers.pipelines.importing import import_checkpoint
from workers.pipelines.merge import merge_checkpoints


def write_checkpoint(folder: Path, tensors: Mapping[str, Tensor], *, n_shards: int = 1) -> LocalCheckpoint:
    """Write a checkpoint folder, the tensors dealt out to the shards in turn, and import it."""
    folder.mkdir(parents=True)
    names = sorted(tensors)
    if n_shards == 1:
        save_file({name: tensors[name] for name in names}, folder / "model.safetensors")
    else:
        files = [f"model-{index + 1:05}-of-{n_shards:05}.safetensors" for index in range(n_shards)]
        for index, file in enumerate(files):
            save_file({name: tensors[name] for name in names[index::n_shards]}, folder / file)
        placed = {name: files[index % n_shards] for index, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "toy"}), encoding="utf-8")
    return LocalCheckpoint(id=folder.name, path=folder, manifest=import_checkpoint(folder, ignore))


@dataclass(frozen=True)
class FileMerge:
    """A method with all it needs, ready to run over checkpoint folders."""

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)  # any method's, as JSON
    weights: Sequence[float] = ()
    of_models: Sequence[Mapping[str, Any]] = ()  # each model's own parameters
    seed: int = 0
    exclude: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    transforms: tuple[PinnedStep, ...] = ()
    post_steps: tuple[PinnedStep, ...] = ()
    output_dtype: str | None = None
    shard_bytes: int = 5_000_000_000
    threads: int | None = None
    chunk_elements: int | None = None
    device: str = "cpu"

    def plan(self, base: LocalCheckpoint | None, models: Sequence[LocalCheckpoint]) -> tuple[Recipe, MergePlan]:
        """Return the recipe and its plan."""
        weights = self.weights or [1.0] * len(models)
        card, parameters = load_catalog().check(
            self.method, self.parameters, has_base_model=base is not None, weights=weights
        )
        recipe = Recipe(
            method=card.name,
            method_version=card.version,
            base_model=None if base is None else pin(base),
            models=tuple(
                RecipeModel(**pin(model).model_dump(), weight=weight, parameters=dict(own))
                for model, weight, own in zip(models, weights, self.of_models or [{}] * len(models), strict=True)
            ),
            parameters=parameters,
            seed=self.seed,
            exclude=self.exclude,
            overrides=self.overrides,
            transforms=self.transforms,
            post_steps=self.post_steps,
            output_dtype=self.output_dtype,
            shard_bytes=self.shard_bytes,
        )
        beside = load_catalog().cards_beside(recipe)
        manifests = [model.manifest for model in models]
        return recipe, make_plan(recipe, None if base is None else base.manifest, manifests, card, beside)

    def __call__(self, base: LocalCheckpoint | None, models: Sequence[LocalCheckpoint], output: Path) -> Manifest:
        """Merge into the folder `output` and return the manifest of the result."""
        recipe, plan = self.plan(base, models)
        output.mkdir(parents=True)
        fused.load()
        manifest, _ = merge_checkpoints(
            plan,
            load_recipe(recipe),
            recipe=recipe,
            base=base,
            models=models,
            output=output,
            on_progress=ignore,
            device=self.device,
            threads=self.threads,
            chunk_elements=self.chunk_elements,
        )
        return manifest


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a folder's weight files, as the safetensors library reads it."""
    files = [file for file in sorted(folder.glob("*.safetensors")) if file.name not in (BASE_FILE, SUMS_FILE)]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def ignore(_progress: Progress) -> None:
    """Report to nobody."""
