"""One merge in one process, as a job process runs it: `python -m benchmarks.engine.merge_once FOLDER METHOD OUT`.

The inputs' manifests are read from FOLDER/manifests.json (a registered checkpoint has been imported long before), which
is made first if it is not there. Prints one line of JSON: the seconds of the merge itself, its CPU seconds, how often
it passed over the inputs, which of the folder's models it read, the weights digest, the anonymous memory of the process
before the merge began.
"""

import argparse
import gc
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue, TypeAdapter

from app.domain.catalog import load_catalog
from app.domain.checkpoints import LocalCheckpoint, Manifest
from app.domain.plans import make_plan
from app.domain.recipes import Recipe, RecipeModel, pin
from benchmarks.engine.floor import sync, weight_files
from benchmarks.engine.processes import anonymous_bytes
from workers.catalog import load_recipe
from workers.numerics import fused
from workers.pipelines.importing import import_checkpoint
from workers.pipelines.materialize import materialize
from workers.pipelines.merge import merge_checkpoints

MANIFESTS: TypeAdapter[dict[str, Manifest]] = TypeAdapter(dict[str, Manifest])
SHARD_BYTES = 5_000_000_000


def import_all(folder: Path) -> list[LocalCheckpoint]:
    """Return the folder's checkpoints, the base first; their manifests are kept in manifests.json."""
    stored = folder / "manifests.json"
    if not stored.exists():
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        manifests = {name: import_checkpoint(folder / name, lambda _: None) for name in names}
        stored.write_bytes(MANIFESTS.dump_json(manifests))
    found = MANIFESTS.validate_json(stored.read_bytes())
    return [LocalCheckpoint(id=name, path=folder / name, manifest=found[name]) for name in sorted(found)]


@dataclass(frozen=True)
class Order:
    """What is merged: the first models of a folder, by a method."""

    method: str
    parameters: Mapping[str, JsonValue]
    n_models: int | None = None  # None: all
    is_based: bool = True  # whether the base model is given
    task: str | None = None  # of a multitask artifact: whose dense model is written too, into the folder task


def merge_once(folder: Path, order: Order, output: Path, *, threads: int | None) -> dict[str, JsonValue]:
    """Merge models of a folder and return what it took."""
    checkpoint, *all_models = import_all(folder)
    base, models = checkpoint if order.is_based else None, all_models[: order.n_models]
    fused.load()
    gc.freeze()  # as the warm process that a job is forked from
    idle_bytes = anonymous_bytes()
    began_at, cpu_before = time.perf_counter(), time.process_time()
    card, parameters = load_catalog().check(
        order.method, dict(order.parameters), has_base_model=order.is_based, weights=[1.0] * len(models)
    )
    recipe = Recipe(
        method=card.name,
        method_version=card.version,
        base_model=None if base is None else pin(base),
        models=tuple(RecipeModel(**pin(model).model_dump()) for model in models),
        parameters=parameters,
        shard_bytes=SHARD_BYTES,
    )
    plan = make_plan(recipe, None if base is None else base.manifest, [model.manifest for model in models], card)
    output.mkdir(parents=True)
    code = load_recipe(recipe)
    manifest, report = merge_checkpoints(
        plan,
        code,
        recipe=recipe,
        base=base,
        models=models,
        output=output,
        on_progress=lambda _: None,
        threads=threads,
    )
    for file in weight_files(output):
        sync(file)  # as the store does, before it publishes
    seconds, cpu_seconds = time.perf_counter() - began_at, time.process_time() - cpu_before
    if order.task is not None:
        (output / "task").mkdir()
        artifact = LocalCheckpoint(id="artifact", path=output, manifest=manifest)
        materialize(artifact, order.task, output / "task", lambda _: None)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "n_passes": report["n_passes"],
        "read": [model.id for model in (base, *models) if model is not None and (model is not base or code.uses_base)],
        "estimated_seconds": plan.estimated_seconds,
        "planned_memory_bytes": plan.peak_memory_bytes,
        "idle_bytes": idle_bytes,
        "weights_digest": manifest.weights_digest,
    }


def main() -> None:
    """Merge once, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("method")
    parser.add_argument("output", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--parameters", type=json.loads, default={}, help="as JSON; default: the method's")
    parser.add_argument("--models", type=int, help="how many of the folder's; default: all")
    parser.add_argument("--without-base", action="store_true")
    parser.add_argument("--task", help="write this task's dense model too, once the artifact is there")
    arguments = parser.parse_args()
    order = Order(
        arguments.method,
        arguments.parameters,
        n_models=arguments.models,
        is_based=not arguments.without_base,
        task=arguments.task,
    )
    print(json.dumps(merge_once(arguments.folder, order, arguments.output, threads=arguments.threads)))


if __name__ == "__main__":
    main()
