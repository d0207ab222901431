"""Merges that look at data: what is asked, and what was found."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from app.domain.adapters import AdapterSpace
from benchmarks.evidence.accuracy import Counts


@dataclass(frozen=True)
class Lesson:
    """A merge of all models that looks at data: of each task a split, or so many of its examples."""

    method: str
    parameters: Mapping[str, JsonValue]
    transforms: tuple[str, ...] = ()
    split: str = "validation"
    max_examples: int | None = None
    seed: int = 0
    space: AdapterSpace = "delta"  # where adapters are merged

    @property
    def measured(self) -> tuple[str, ...]:
        """The splits that the result is measured on: not the one that it has seen."""
        return tuple(split for split in ("validation", "test") if split != self.split)


@dataclass(frozen=True)
class Learned:
    """What a merge that looks at data found."""

    told: JsonValue  # what the job reports of the learning
    counts: Mapping[str, Counts]  # by split
    distances: JsonValue = None  # of features, where they are asked for

    @property
    def test(self) -> Counts:
        """The counts on the test splits."""
        return self.counts["test"]
