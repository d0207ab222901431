"""What every experiment works with: the suite, the models it trains, and the ledger of what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import JsonValue

from app.domain.checkpoints import LocalCheckpoint
from benchmarks.evidence import accuracy
from benchmarks.evidence.brief import shorten
from benchmarks.evidence.ledger import Ledger
from benchmarks.evidence.merging import Merges
from benchmarks.evidence.training import Trainer
from benchmarks.suite.groups import INDIVIDUAL
from benchmarks.suite.inputs import Suite
from benchmarks.suite.rows import read_row

Parameters = dict[str, JsonValue]


@dataclass(frozen=True)
class Laboratory:
    """A folder that keeps trained models and numbers, and the suite that it lies in."""

    suite: Suite
    folder: Path

    @cached_property
    def trainer(self) -> Trainer:
        """Trains models, each once."""
        return Trainer(self.suite, self.folder / "trained")

    @cached_property
    def ledger(self) -> Ledger:
        """What was measured so far."""
        return Ledger(self.folder / "measured.jsonl")

    @cached_property
    def brief(self) -> Suite:
        """The suite with fewer test texts."""
        return shorten(self.suite, self.folder / "brief")

    @cached_property
    def experts(self) -> Merges:
        """Merges of the suite's own models, fine-tuned in full."""
        return Merges(self.suite, self.suite.models, self.ledger)

    @cached_property
    def experts_in_brief(self) -> Merges:
        """The same, measured on fewer test texts."""
        return self.merges_in_brief(self.suite.models)

    @property
    def individual(self) -> dict[str, JsonValue]:
        """What each task's own model scores on test: the suite's row, measured before the experiments."""
        row = read_row(INDIVIDUAL)
        if row is None:
            raise FileNotFoundError("the suite's row of the individual models is not measured; run `make suite`")
        return dict(row["counts"])

    def merges_in_brief(self, models: Sequence[LocalCheckpoint], places: Sequence[int] | None = None) -> Merges:
        """Return the merges of one model per task, measured on fewer test texts.

        places: of the models' tasks among the suite's; default: all.
        """
        return Merges(self.brief if places is None else self.brief.only(places), models, self.ledger)


@dataclass(frozen=True)
class Choice:
    """The parameters that did best on validation, and the mean accuracy there."""

    parameters: Parameters
    validation: float


def choose(
    merges: Merges, method: str, candidates: Sequence[Mapping[str, JsonValue]], models: Sequence[int] | None = None
) -> Choice:
    """Return the candidate with the best mean accuracy on the validation splits; of equal ones the first."""
    scores = [accuracy.mean(merges.merge(method, candidate, "validation", models)) for candidate in candidates]
    best = max(range(len(scores)), key=scores.__getitem__)
    return Choice(dict(candidates[best]), scores[best])


def round_robin(n_models: int, size: int, n_subsets: int) -> list[tuple[int, ...]]:
    """Return subsets of neighbors in a circle, n_subsets at most; with one for each model all models occur alike."""
    if size == n_models:
        return [tuple(range(n_models))]
    return [tuple(sorted((start + at) % n_models for at in range(size))) for start in range(min(n_models, n_subsets))]
