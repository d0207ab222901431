"""Merges a suite's models with a method and measures what came of it."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app.domain.catalog import MethodCard, StepCard, load_catalog
from app.domain.checkpoints import LocalCheckpoint
from app.domain.parameters import NestedMethod
from app.domain.recipes import PinnedStep, Recipe, RecipeModel, pin
from app.domain.work import CheckpointOutcome, MergeWork
from benchmarks.suite.inputs import Suite, ignore, open_bench
from benchmarks.suite.recipes import WEIGHT, Parameters, find_best
from workers.pipelines.bench import MemoryBench
from workers.runner import WorkOrder, perform

Counts = dict[str, tuple[int, int]]  # task name -> (correct, total)
SHARD_BYTES = 5_000_000_000


def measure_method(suite: Suite, card: MethodCard, post_step: StepCard | None = None) -> dict[str, Any]:
    """Return a method's row: the best parameters by validation, and the counts on test, as JSON.

    A dense model is measured from memory, as sweeps do, and the merges share what they read; an adapter, a shared model
    with a patch for each task, or what a post-step (with its defaults) changes, is written first. A method of one model
    that makes an adapter of it makes one of each model, and each is measured on its own task.
    """
    with tempfile.TemporaryDirectory(prefix="amalgam-suite-") as folder:
        measure = _measurer(suite, card, Path(folder), post_step)
        best = find_best(card, lambda parameters: mean_accuracy(measure(parameters, "validation")))
        counts = measure(best.parameters, "test")
    return {
        "method": card.name,
        "version": card.version,
        **({} if post_step is None else {"post_step": post_step.name, "post_step_version": post_step.version}),
        "produces": card.produces,
        "parameters": best.parameters,
        "n_tried": best.n_tried,
        "validation": best.score,
        "counts": counts,
    }


def measure_each(suite: Suite, models: Sequence[LocalCheckpoint], split: str) -> Counts:
    """Return the counts of one model per task, each on its own."""
    counts: Counts = {}
    for task, model in zip(suite.tasks, models, strict=True):
        counts |= suite.measure(model, split, tasks=[task])
    return counts


def mean_accuracy(counts: Counts) -> float:
    """Return the mean over tasks of the share of correct answers."""
    return sum(correct / total for correct, total in counts.values()) / len(counts)


def _measurer(
    suite: Suite, card: MethodCard, folder: Path, post_step: StepCard | None = None
) -> Callable[[Parameters, str], Counts]:
    """Return what measures the merge by parameters on a split. folder: exists, for what lies beside weights."""
    if card.produces == "adapter" and card.max_models == 1:
        return lambda parameters, split: _measure_each_alone(suite, card, parameters, split)
    if card.produces != "dense" or post_step is not None:
        return lambda parameters, split: _measure_written(suite, card, parameters, split, post_step)
    first, *others = suite.models
    is_moved = card.max_models == 1  # the first model, towards the second
    bench = open_bench(suite, others if is_moved else suite.models, folder, base=first if is_moved else suite.base)
    n_models = len(others) if is_moved else len(suite.models)
    return lambda parameters, split: _measure_dense(
        bench, suite, NestedMethod(method=card.name, parameters=parameters), n_models, split
    )


def _measure_dense(bench: MemoryBench, suite: Suite, method: NestedMethod, n_models: int, split: str) -> Counts:
    with bench.merge(method, range(n_models)) as merged:
        found = {task.spec.name: merged.measure(place, split) for place, task in enumerate(suite.tasks)}
    return {task: (one.details.n_correct or 0, one.n) for task, one in found.items()}


def _measure_written(
    suite: Suite, card: MethodCard, parameters: Parameters, split: str, post_step: StepCard | None = None
) -> Counts:
    with tempfile.TemporaryDirectory(prefix="amalgam-suite-") as folder:
        merged = _merge(suite, card, parameters, Path(folder) / "merged", post_step)
        return suite.measure(merged, split)


def _measure_each_alone(suite: Suite, card: MethodCard, parameters: Parameters, split: str) -> Counts:
    with tempfile.TemporaryDirectory(prefix="amalgam-suite-") as folder:
        alone = [suite.only([place]) for place in range(len(suite.models))]
        made = [_merge(one, card, parameters, Path(folder) / str(place)) for place, one in enumerate(alone)]
        return measure_each(suite, made, split)


def _merge(
    suite: Suite, card: MethodCard, parameters: Parameters, output: Path, post_step: StepCard | None = None
) -> LocalCheckpoint:
    """Merge the suite's models as a job does, with one weight for all, which may stand among the parameters."""
    own = dict(parameters)
    weight = own.pop(WEIGHT, 1.0)
    if not isinstance(weight, int | float):
        raise TypeError(f"found the weight {weight!r}, expected a number")
    has_base = card.base_model != "unused" or post_step is not None
    _, effective = load_catalog().check(card.name, own, has_base_model=has_base, weights=[weight] * len(suite.models))
    recipe = Recipe(
        method=card.name,
        method_version=card.version,
        base_model=pin(suite.base) if has_base else None,
        models=tuple(
            RecipeModel(**pin(model).model_dump(), weight=weight, task=task if card.produces == "multitask" else None)
            for task, model in suite.individual.items()
        ),
        parameters=effective,
        post_steps=() if post_step is None else (_pin_step(post_step),),
        shard_bytes=SHARD_BYTES,
    )
    output.mkdir(parents=True)
    work = MergeWork(recipe=recipe, base_model=suite.base if has_base else None, models=suite.models, output=output)
    outcome = perform(WorkOrder(work=work), ignore)
    if not isinstance(outcome, CheckpointOutcome):
        raise TypeError(f"a merge gave a {type(outcome).__name__}, expected a checkpoint")
    return LocalCheckpoint(id=card.name, path=output, manifest=outcome.manifest)


def _pin_step(card: StepCard) -> PinnedStep:
    _, effective = load_catalog().check_step("post_steps", card.name, {}, pointer="")
    return PinnedStep(name=card.name, version=card.version, parameters=effective)
