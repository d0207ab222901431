"""Writes docs/evidence.md and its figures from what the experiments found."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from matplotlib.figure import Figure

from benchmarks.evidence import (
    compression,
    disentanglement,
    increments,
    learned,
    linearized,
    localized,
    overview,
    prolonged,
    settings,
)
from benchmarks.evidence.laboratory import Laboratory
from benchmarks.evidence.processes import Part
from workers.figures import style


class Experiment(Protocol):
    """A module: it finds numbers, draws them, and tells what they say."""

    NAME: str
    TITLE: str

    def parts(self) -> Sequence[Part]:
        """Return what can be measured at once, each part into the ledger; none needs another."""

    def find(self, laboratory: Laboratory) -> dict[str, Any]:
        """Measure what is not in the ledger; return everything as JSON."""

    def draw(self, found: Mapping[str, Any]) -> dict[str, Figure]:
        """Return the figures by name."""

    def tell(self, found: Mapping[str, Any]) -> str:
        """Return the section's text, of the data alone."""


DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "evidence"
PAGE = DOCS / "evidence.md"
EXPERIMENTS: tuple[Experiment, ...] = (
    overview,
    linearized,
    disentanglement,
    increments,
    compression,
    learned,
    prolonged,
    localized,
)
APART: tuple[Experiment, ...] = (prolonged, localized)  # measured by their names alone: they take too long

HEAD = """# The evidence: what the papers claim, measured here

Written by `make suite`; do not edit. The numbers behind it lie in docs/evidence/*.json. MiniLM (22.7M parameters)
and the five tasks of `examples/tasks`: 128 validation and 256 test texts each. Parameters are chosen on validation,
reported is test. Where nothing else is said, the models are those of the [suite](suite.md): fine-tuned in full, seed 0.

    make suite-train    # trains what the evidence needs: resumable
    make suite          # measures what is not known yet, and writes this page

The tasks are small and so is the encoder. Intervals are of the texts that were drawn, 95 %; merges are measured on the
same texts, so the interval of a difference is narrower than two intervals make it look, by an amount not measured here.
Every grid and setting is named [at the end](#settings).

"""

TAIL = """
## Not measured

- Other seeds than those named; one order of tasks in the section on Breadcrumbs.
- Breadcrumbs' parameters chosen on more texts.
- L-LoRA: other ranks, steps and target modules than those named; LoRA's factors with fewer tasks, under TIES, and
  merged around their start, as the paper's task arithmetic does.
- AdaMerging with the papers' 500 steps, and on the test split.
- Surgery on the test split, in its second version, and over merges that have learned.
"""
NOT_RUN = "- {title}: not run yet. `python -m benchmarks.evidence --only {name}` does.\n"


def save(name: str, found: Mapping[str, Any]) -> None:
    """Keep what an experiment found."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read(experiment: Experiment) -> Any:
    """Return what an experiment found; None if it was not run."""
    place = FOLDER / f"{experiment.NAME}.json"
    return json.loads(place.read_text(encoding="utf-8")) if place.exists() else None


def write() -> None:
    """Write the page and the figures of every experiment that was run, and name the others."""
    run = {experiment: found for experiment in EXPERIMENTS if (found := read(experiment)) is not None}
    sections = [_section(experiment, found) for experiment, found in run.items()]
    rest = [NOT_RUN.format(title=one.TITLE, name=one.NAME) for one in EXPERIMENTS if one not in run]
    PAGE.write_text(HEAD + "\n".join([*sections, settings.tell()]) + TAIL + "".join(rest), encoding="utf-8")


def _section(experiment: Experiment, found: Mapping[str, Any]) -> str:
    """Write an experiment's figures; return its text."""
    images: list[str] = []
    with style.applied():
        for name, figure in experiment.draw(found).items():
            (FOLDER / f"{name}.svg").write_bytes(style.to_svg(figure, experiment.TITLE))
            images.append(f"![{experiment.TITLE}](evidence/{name}.svg)\n")
    return f"## {experiment.TITLE}\n\n{experiment.tell(found)}\n" + "\n".join(images)
