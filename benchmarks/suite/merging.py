"""Merges the suite's models with a method and measures what came of it."""

import tempfile
from pathlib import Path
from typing import Any

from app.domain.catalog import MethodCard, load_catalog
from app.domain.checkpoints import LocalCheckpoint
from app.domain.parameters import NestedMethod
from app.domain.plans import make_plan
from app.domain.recipes import Recipe, RecipeModel, pin
from benchmarks.suite.inputs import Suite, ignore, open_bench
from benchmarks.suite.recipes import Parameters, find_best
from workers.catalog import load_recipe
from workers.pipelines.bench import MemoryBench
from workers.pipelines.merge import merge_checkpoints

Counts = dict[str, tuple[int, int]]  # task name -> (correct, total)
SHARD_BYTES = 5_000_000_000


def measure_method(suite: Suite, card: MethodCard) -> dict[str, Any]:
    """Return a method's row: the best parameters by validation, and the counts on test, as JSON.

    A dense model is measured from memory, as sweeps do, and the merges share what they read; a shared model with a
    patch for each task is written first.
    """
    with tempfile.TemporaryDirectory(prefix="amalgam-suite-") as folder:
        bench = open_bench(suite, suite.models, Path(folder)) if card.produces == "dense" else None

        def measure(parameters: Parameters, split: str) -> Counts:
            if bench is None:
                return _measure_patched(suite, card, parameters, split)
            return _measure_dense(bench, suite, NestedMethod(method=card.name, parameters=parameters), split)

        best = find_best(card, lambda parameters: mean_accuracy(measure(parameters, "validation")))
        counts = measure(best.parameters, "test")
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


def _measure_dense(bench: MemoryBench, suite: Suite, method: NestedMethod, split: str) -> Counts:
    with bench.merge(method, range(len(suite.models))) as merged:
        found = {task.spec.name: merged.measure(place, split) for place, task in enumerate(suite.tasks)}
    return {task: (one.details.n_correct or 0, one.n) for task, one in found.items()}


def _measure_patched(suite: Suite, card: MethodCard, parameters: Parameters, split: str) -> Counts:
    with tempfile.TemporaryDirectory(prefix="amalgam-suite-") as folder:
        room = Path(folder) / "tasks"
        room.mkdir()
        return suite.measure(_merge(suite, card, parameters, Path(folder) / "merged"), split, room=room)


def _merge(suite: Suite, card: MethodCard, parameters: Parameters, output: Path) -> LocalCheckpoint:
    weights = [1.0] * len(suite.models)
    has_base = card.base_model != "unused"
    _, effective = load_catalog().check(card.name, parameters, has_base_model=has_base, weights=weights)
    recipe = Recipe(
        method=card.name,
        method_version=card.version,
        base_model=pin(suite.base) if has_base else None,
        models=tuple(RecipeModel(**pin(model).model_dump(), task=task) for task, model in suite.individual.items()),
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
