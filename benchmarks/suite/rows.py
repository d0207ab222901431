"""The rows of the table, each kept in a file of its own as soon as it is measured."""

import json
import time
from functools import cache
from pathlib import Path
from typing import Any

from app.domain.catalog import load_catalog
from benchmarks.suite.inputs import Suite, open_suite
from benchmarks.suite.merging import measure_method
from benchmarks.suite.recipes import SETTINGS

_open_once = cache(open_suite)  # its models are read and hashed once in each process


def measure_row(name: str, folder: Path) -> float:
    """Measure one row and keep it; return the seconds it took."""
    began_at = time.monotonic()
    suite = _open_once(folder)
    row = _reference(suite, name) if name in ("pre-trained", "individual") else _method(suite, name)
    place = place_of(folder / "results", name)
    place.parent.mkdir(exist_ok=True)
    place.with_suffix(".part").write_text(json.dumps(row, indent=1), encoding="utf-8")
    place.with_suffix(".part").rename(place)
    return time.monotonic() - began_at


def place_of(results: Path, name: str) -> Path:
    """Return where a row is kept; another version of the method, or another setting, is another row."""
    if name in ("pre-trained", "individual"):
        return results / f"{name}.json"
    setting = "".join(f"-{key}-{value}" for key, value in sorted(SETTINGS.get(name, {}).items()))
    return results / f"{name}-{load_catalog().method(name).version}{setting}.json"


def _method(suite: Suite, name: str) -> dict[str, Any]:
    return measure_method(suite, load_catalog().method(name))


def _reference(suite: Suite, name: str) -> dict[str, Any]:
    """Return the row of the base model, or that of each task's own."""
    if name == "pre-trained":
        return {"method": name, "counts": suite.measure(suite.base, "test")}
    pairs = zip(suite.tasks, suite.models, strict=True)
    own = [suite.measure(model, "test", tasks=[task]) for task, model in pairs]
    return {"method": name, "counts": {task: counts for one in own for task, counts in one.items()}}
