"""The rows of the table, each kept in a file of its own below docs/suite as soon as it is measured."""

import json
import time
from functools import cache
from pathlib import Path
from typing import Any

from app.domain.catalog import load_catalog
from benchmarks.suite.inputs import Suite, open_suite
from benchmarks.suite.merging import measure_method
from benchmarks.suite.recipes import SETTINGS

RESULTS = Path(__file__).parents[2] / "docs" / "suite"

REFERENCES = ("pre-trained", "individual")

_open_once = cache(open_suite)  # its models are read and hashed once in each process


def measure_row(name: str, folder: Path) -> float:
    """Measure one row and keep it; return the seconds it took."""
    began_at = time.monotonic()
    suite = _open_once(folder)
    row = _reference(suite, name) if name in REFERENCES else _method(suite, name)
    place = place_of(name)
    place.parent.mkdir(exist_ok=True)
    place.with_suffix(".part").write_text(json.dumps(row, indent=1), encoding="utf-8")
    place.with_suffix(".part").rename(place)
    return time.monotonic() - began_at


def place_of(name: str) -> Path:
    """Return where a row is kept."""
    return RESULTS / f"{name}.json"


def read_row(name: str) -> dict[str, Any] | None:
    """Return a row as it was measured; None: not yet, or with another version of the method, or other settings."""
    if not place_of(name).exists():
        return None
    row: dict[str, Any] = json.loads(place_of(name).read_text(encoding="utf-8"))
    if name in REFERENCES:
        return row
    has_settings = row["parameters"].items() >= SETTINGS.get(name, {}).items()
    return row if has_settings and row["version"] == load_catalog().method(name).version else None


def _method(suite: Suite, name: str) -> dict[str, Any]:
    return measure_method(suite, load_catalog().method(name))


def _reference(suite: Suite, name: str) -> dict[str, Any]:
    """Return the row of the base model, or that of each task's own."""
    if name == "pre-trained":
        return {"method": name, "counts": suite.measure(suite.base, "test")}
    pairs = zip(suite.tasks, suite.models, strict=True)
    own = [suite.measure(model, "test", tasks=[task]) for task, model in pairs]
    return {"method": name, "counts": {task: counts for one in own for task, counts in one.items()}}
