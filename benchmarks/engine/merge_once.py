"""One merge in one process, as a job process runs it: `python -m benchmarks.engine.merge_once FOLDER METHOD OUT`.

The inputs' manifests are read from FOLDER/manifests.json (a registered checkpoint has been imported long before), which
is made first if it is not there. Prints one line of JSON: the seconds of the merge itself, and the weights digest.
"""

import argparse
import json
import time
from pathlib import Path

from pydantic import JsonValue, TypeAdapter

from app.domain.catalog import load_catalog
from app.domain.checkpoints import LocalCheckpoint, Manifest
from app.domain.plans import make_plan
from app.domain.recipes import Recipe, RecipeModel, pin
from workers.catalog import load_recipe
from workers.numerics import fused
from workers.pipelines.importing import import_checkpoint
from workers.pipelines.merge import merge_checkpoints

MANIFESTS: TypeAdapter[dict[str, Manifest]] = TypeAdapter(dict[str, Manifest])
SHARD_BYTES = 5_000_000_000
PARAMETERS: dict[str, dict[str, JsonValue]] = {
    "average": {},
    "task_arithmetic": {"scaling_coefficient": 0.3},
    "ties": {"density": 0.2},
    "breadcrumbs": {},
    "dare_ties": {"density": 0.2},
    "karcher": {},
    "model_stock": {},
}


def import_all(folder: Path) -> list[LocalCheckpoint]:
    """Return the folder's checkpoints, the base first; their manifests are kept in manifests.json."""
    stored = folder / "manifests.json"
    if not stored.exists():
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        manifests = {name: import_checkpoint(folder / name, lambda _: None) for name in names}
        stored.write_bytes(MANIFESTS.dump_json(manifests))
    found = MANIFESTS.validate_json(stored.read_bytes())
    return [LocalCheckpoint(id=name, path=folder / name, manifest=found[name]) for name in sorted(found)]


def merge_once(folder: Path, method: str, output: Path, *, threads: int | None) -> dict[str, JsonValue]:
    """Merge the folder's models and return what it took."""
    base, *models = import_all(folder)
    fused.load()
    began_at = time.perf_counter()
    card, parameters = load_catalog().check(
        method, PARAMETERS[method], has_base_model=True, weights=[1.0] * len(models)
    )
    recipe = Recipe(
        method=card.name,
        method_version=card.version,
        base_model=pin(base),
        models=tuple(RecipeModel(**pin(model).model_dump()) for model in models),
        parameters=parameters,
        shard_bytes=SHARD_BYTES,
    )
    plan = make_plan(recipe, base.manifest, [model.manifest for model in models], card)
    output.mkdir(parents=True)
    manifest, _ = merge_checkpoints(
        plan,
        load_recipe(recipe),
        recipe=recipe,
        base=base,
        models=models,
        output=output,
        on_progress=lambda _: None,
        threads=threads,
    )
    return {
        "seconds": time.perf_counter() - began_at,
        "estimated_seconds": plan.estimated_seconds,
        "planned_memory_bytes": plan.peak_memory_bytes,
        "weights_digest": manifest.weights_digest,
    }


def main() -> None:
    """Merge once, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("method", choices=PARAMETERS)
    parser.add_argument("output", type=Path)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    print(json.dumps(merge_once(arguments.folder, arguments.method, arguments.output, threads=arguments.threads)))


if __name__ == "__main__":
    main()
