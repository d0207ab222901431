"""The rows of the tables, each kept in a file of its own below docs/suite as soon as it is measured."""

import json
import time
from pathlib import Path
from typing import Any

from app.domain.catalog import MethodCard, StepCard, load_catalog
from benchmarks.suite.groups import INDIVIDUAL, WITH, group_of
from benchmarks.suite.inputs import Suite
from benchmarks.suite.merging import measure_each, measure_method
from benchmarks.suite.recipes import SETTINGS, sweep_of

RESULTS = Path(__file__).parents[2] / "docs" / "suite"

REFERENCES = ("pre-trained", INDIVIDUAL)


def measure_row(name: str, folder: Path) -> float:
    """Measure one row and keep it; return the seconds it took."""
    began_at = time.monotonic()
    group, own = group_of(name)
    suite = group.open(folder)
    row = _reference(suite, own) if own in REFERENCES else measure_method(suite, *cards_of(own))
    place = place_of(name)
    place.parent.mkdir(exist_ok=True, parents=True)
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
    own = group_of(name)[1]
    if own in REFERENCES:
        return row
    card, post_step = cards_of(own)
    sweep = sweep_of(card)
    has_settings = row["parameters"].items() >= SETTINGS.get(card.name, {}).items()
    has_chosen = sweep is None or sweep.find(row["parameters"]) is not None
    has_versions = row["version"] == card.version and (
        post_step is None or row["post_step_version"] == post_step.version
    )
    return row if has_settings and has_chosen and has_versions else None


def cards_of(row: str) -> tuple[MethodCard, StepCard | None]:
    """Return the method of a row METHOD or METHOD+POST_STEP, and the post-step, if there is one."""
    method, _, step = row.partition(WITH)
    return load_catalog().method(method), load_catalog().check_step("post_steps", step, {}, pointer="")[0] if step else None


def _reference(suite: Suite, name: str) -> dict[str, Any]:
    """Return the row of the base model, or that of each task's own."""
    if name == INDIVIDUAL:
        return {"method": name, "counts": measure_each(suite, suite.models, "test")}
    return {"method": name, "counts": suite.measure(suite.base, "test")}
