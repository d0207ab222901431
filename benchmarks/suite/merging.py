"""Merges the suite's models with a method and measures what came of it."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.domain.catalog import MethodCard, load_catalog
from app.domain.checkpoints import LocalCheckpoint
from app.domain.plans import make_plan
from app.domain.recipes import Recipe, RecipeModel, pin
from benchmarks.suite.inputs import Suite, ignore
from benchmarks.suite.recipes import Parameters, find_best
from workers.catalog import load_recipe
from workers.pipelines.materialize import materialize
from workers.pipelines.merge import merge_checkpoints

Counts = dict[str, tuple[int, int]]  # task name -> (correct, total)
SHARD_BYTES = 5_000_000_000


def measure_method(suite: Suite, card: MethodCard) -> dict[str, Any]:
    """Return a method's row: the best parameters by validation, and the counts on test, as JSON."""

    def score(parameters: Parameters) -> float:
        with merged(suite, card, parameters) as models:
            return mean_accuracy(suite.measure(models, "validation"))

    best = find_best(card, score)
    with merged(suite, card, best.parameters) as models:
        counts = suite.measure(models, "test")
    return {
        "method": card.name,
        "version": card.version,
        "produces": card.produces,
        "parameters": best.parameters,
        "n_tried": best.n_tried,
        "validation": best.score,
        "counts": counts,
    }


def mean_accuracy(counts: Counts) -> float:
    """Return the mean over tasks of the share of correct answers."""
    return sum(correct / total for correct, total in counts.values()) / len(counts)


@contextmanager
def merged(suite: Suite, card: MethodCard, parameters: Parameters) -> Iterator[Mapping[str, LocalCheckpoint]]:
    """Merge into a temporary folder; give task name -> the model that stands for it."""
    folder = Path(tempfile.mkdtemp(prefix="amalgam-suite-"))
    try:
        result = _merge(suite, card, parameters, folder / "merged")
        yield suite.everywhere(result) if card.produces == "dense" else _of_each_task(suite, result, folder)
    finally:
        shutil.rmtree(folder)


def _merge(suite: Suite, card: MethodCard, parameters: Parameters, output: Path) -> LocalCheckpoint:
    weights = [1.0] * len(suite.models)
    has_base = card.base_model != "unused"
    _, effective = load_catalog().check(card.name, parameters, has_base_model=has_base, weights=weights)
    recipe = Recipe(
        method=card.name,
        method_version=card.version,
        base_model=pin(suite.base) if has_base else None,
        models=tuple(
            RecipeModel(**pin(model).model_dump(), task=task if card.produces == "multitask" else None)
            for task, model in suite.individual.items()
        ),
        parameters=effective,
        shard_bytes=SHARD_BYTES,
    )
    base = suite.base if has_base else None
    plan = make_plan(
        recipe,
        None if base is None else base.manifest,
        [model.manifest for model in suite.models],
        card,
        load_catalog().cards_beside(recipe),
    )
    output.mkdir(parents=True)
    manifest, _ = merge_checkpoints(
        plan,
        load_recipe(recipe),
        recipe=recipe,
        base=base,
        models=suite.models,
        output=output,
        on_progress=ignore,
        threads=1,
    )
    return LocalCheckpoint(id=card.name, path=output, manifest=manifest)


def _of_each_task(suite: Suite, artifact: LocalCheckpoint, folder: Path) -> dict[str, LocalCheckpoint]:
    """Return task name -> the dense model that its patch gives."""
    models: dict[str, LocalCheckpoint] = {}
    for task in suite.individual:
        output = folder / task
        output.mkdir()
        manifest = materialize(artifact, task, output, ignore)
        models[task] = LocalCheckpoint(id=task, path=output, manifest=manifest)
    return models
