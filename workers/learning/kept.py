"""Statistics of models kept for merges that would measure the same again: those of the points of a sweep.

They depend on the models, the data and the seed, which all of these merges share, on the transforms before the method,
and on the parameters that its learner reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workers.learning.statistics_files import StatisticsOfModels

MAX_KEPT = 2  # sets of statistics, each of all models; the one that was asked for longest ago goes


@dataclass(frozen=True)
class Kept:
    """Statistics, and on how many examples of each task they were measured."""

    statistics: StatisticsOfModels
    n_examples: Mapping[int, int]


class KeptStatistics:
    """They lie in a folder, which need not be there yet, under keys that say what they depend on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[str, Kept] = {}  # in the order in which they were asked for
        self._n_added = 0

    def find(self, key: str, scratch: Path) -> Kept | None:
        """Return what is kept, as if it had been measured in the folder `scratch`."""
        found = self._kept.pop(key, None)
        if found is None:
            return None
        self._kept[key] = found
        return Kept(found.statistics.link_to(scratch), found.n_examples)

    def add(self, key: str, measured: Kept) -> None:
        """Keep what was measured, whatever becomes of its files."""
        while len(self._kept) >= MAX_KEPT:
            self._kept.pop(next(iter(self._kept))).statistics.remove()
        self._n_added += 1
        linked = measured.statistics.link_to(self._folder / str(self._n_added))
        linked.close()
        self._kept[key] = Kept(linked, measured.n_examples)
