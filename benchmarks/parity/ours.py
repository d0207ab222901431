"""Our side of the comparison: the same folders through the pipeline that jobs run."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from app.domain.catalog import load_catalog
from app.domain.checkpoints import CheckpointKind, LocalCheckpoint, Manifest
from app.domain.jobs import Progress
from app.domain.plans import make_plan
from app.domain.recipes import PinnedStep, Recipe, RecipeModel, pin
from app.domain.statistics_files import FOLDER
from benchmarks.parity.case import Case
from benchmarks.parity.inputs import FLOATS
from workers.catalog import load_recipe
from workers.learning.statistics_files import StatisticsFile, StatisticsOfModels
from workers.learning_contract import Learn
from workers.pipelines.importing import import_checkpoint
from workers.pipelines.materialize import materialize
from workers.pipelines.merge import merge_checkpoints

SHARD_BYTES = 5_000_000_000


def open_checkpoint(path: Path) -> LocalCheckpoint:
    """Return a folder as pipelines take it."""
    return LocalCheckpoint(id=path.name, path=path, manifest=import_checkpoint(path, ignore))


def merge(
    case: Case,
    base: LocalCheckpoint,
    models: Sequence[LocalCheckpoint],
    output: Path,
    statistics: Sequence[Path] = (),
) -> dict[str, Tensor]:
    """Merge a case into the folder `output` and return its tensors. statistics: of each model, in place of data."""
    used = models[: len(case.weights)]
    is_based = case.is_based and load_catalog().method(case.method).base_model != "unused"
    card, parameters = load_catalog().check(
        case.method, fill_in(case.parameters), has_base_model=is_based, weights=case.weights
    )
    recipe = Recipe(
        method=card.name,
        method_version=card.version,
        base_model=pin(base) if is_based else None,
        models=tuple(
            RecipeModel(**pin(model).model_dump(), weight=weight)
            for model, weight in zip(used, case.weights, strict=True)
        ),
        parameters=parameters,
        shard_bytes=SHARD_BYTES,
        post_steps=tuple(_pin_step(*step) for step in case.post_steps),
    )
    plan = make_plan(
        recipe,
        base.manifest if is_based else None,
        [model.manifest for model in used],
        card,
        load_catalog().cards_beside(recipe),
    )
    output.mkdir(parents=True)
    manifest, _ = merge_checkpoints(
        plan,
        load_recipe(recipe),
        recipe=recipe,
        base=base if is_based else None,
        models=used,
        output=output,
        on_progress=ignore,
        learn=_give(statistics) if statistics else None,
    )
    if case.task is not None:
        artifact = LocalCheckpoint(id="artifact", path=output, manifest=manifest)
        output = output / "task"
        output.mkdir()
        materialize(artifact, f"model-{case.task}", output, ignore)
    return load_file(output / "model.safetensors")


def _pin_step(name: str, parameters: Mapping[str, Any]) -> PinnedStep:
    card, effective = load_catalog().check_step("post_steps", name, parameters, pointer="")
    return PinnedStep(name=card.name, version=card.version, parameters=effective)


def _give(statistics: Sequence[Path]) -> Learn:
    nothing = Manifest(kind=CheckpointKind.DENSE, files=(), tensors=(), weights_digest="")
    opened = [
        StatisticsFile(LocalCheckpoint(id=path.stem, path=path.parents[1], manifest=nothing), f"{FOLDER}/{path.name}")
        for path in statistics
    ]
    return lambda *_: StatisticsOfModels(opened)


def fill_in(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a case's parameters with the density that is given in words as a number."""
    values = dict(parameters)
    if values.get("density") == "one more than 0.2":
        n = sum(prod(shape) for shape in FLOATS.values())
        values["density"] = (int(0.2 * n) + 1) / n
    return values


def ignore(_progress: Progress) -> None:
    """Report to nobody."""
