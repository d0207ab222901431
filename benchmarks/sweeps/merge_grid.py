"""Merges a grid in memory in one process: `python -m benchmarks.sweeps.merge_grid FOLDER GRID AT_ONCE`.

Prints one line of JSON: seconds, CPU seconds, bytes that were read from the files or from the system's cache of them,
and the anonymous memory of the process before it began.
"""

import argparse
import gc
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from app.domain.catalog import load_catalog
from app.domain.planning import plan_merge
from app.domain.recipes import Recipe, RecipeModel, pin
from benchmarks.engine.merge_once import SHARD_BYTES, import_all
from benchmarks.engine.processes import anonymous_bytes
from workers.catalog import load_recipe
from workers.numerics import fused
from workers.pipelines.held_merge import MergeSet, merge_together
from workers.statistics.kept import Shelf

GRIDS: Mapping[str, tuple[str, Sequence[Mapping[str, JsonValue]]]] = {
    "task_arithmetic": ("task_arithmetic", [{"scaling_coefficient": step / 10} for step in range(1, 9)]),
    "ties-scaling": ("ties", [{"scaling_coefficient": step / 5} for step in range(1, 9)]),
    "ties-density": ("ties", [{"density": step / 10} for step in range(1, 9)]),
}


def merge_grid(folder: Path, grid: str, at_once: int, *, threads: int | None) -> dict[str, float]:
    """Merge every point, so many per read of the inputs; return what it took."""
    base, *models = import_all(folder)
    method, points = GRIDS[grid]
    recipes: list[Recipe] = []
    for point in points:
        card, parameters = load_catalog().check(method, point, has_base_model=True, weights=[1.0] * len(models))
        recipes.append(
            Recipe(
                method=card.name,
                method_version=card.version,
                base_model=pin(base),
                models=tuple(RecipeModel(**pin(model).model_dump()) for model in models),
                parameters=parameters,
                shard_bytes=SHARD_BYTES,
            )
        )
    plan = plan_merge(recipes[0], base.manifest, [model.manifest for model in models], load_catalog().method(method))
    merge_set, shelf = MergeSet(plan, base, models, "cpu", threads), Shelf()
    fused.load()
    gc.freeze()
    idle_bytes, read_before = anonymous_bytes(), _read_bytes()
    began_at, cpu_before = time.perf_counter(), time.process_time()
    for first in range(0, len(recipes), at_once):
        shelf.begin()
        merge_together(merge_set, [(one, load_recipe(one)) for one in recipes[first : first + at_once]], shelf)
    return {
        "seconds": time.perf_counter() - began_at,
        "cpu_seconds": time.process_time() - cpu_before,
        "read_bytes": _read_bytes() - read_before,
        "idle_bytes": idle_bytes,
    }


def _read_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps.merge_grid", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("grid", choices=list(GRIDS))
    parser.add_argument("at_once", type=int)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    found = merge_grid(arguments.folder, arguments.grid, arguments.at_once, threads=arguments.threads)
    print(json.dumps(found))
