"""Where ranks may be looked for: a window for each, guessed from runs that are read here and there.

A guess may fail, for the price of a pass: no result depends on it.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from math import sqrt

import numpy as np

from workers.checkpoints import parallel
from workers.contract import PieceSource
from workers.fusion import NotClean
from workers.numerics import fused
from workers.numerics.fused import Keys
from workers.statistics.rank_keys import LARGEST_KEY, keys_of
from workers.statistics.rank_scopes import Effort, Scope
from workers.statistics.rank_windows import Window

GOLDEN_RATIO = 0.6180339887498949  # its multiples lie evenly in [0, 1)
MIDDLE_OF = 1 << 13  # entries of a sample, where its quantile need not be exact: only the error is estimated there


def guess_windows(
    source: PieceSource, scopes: Sequence[Scope], indices: Sequence[int], effort: Effort
) -> dict[int, list[Window]]:
    """Return, of each scope, a window for each model and rank, wide enough to hold it but for very bad luck."""
    runs = [[(runs[0], runs) for runs in _sample_runs(scopes[index], source.n_models, effort)] for index in indices]
    sampled = source.visit(lambda runs: _read_sample(source, *runs), runs) if runs else ()
    margin = effort.margin if len(indices) < effort.many_scopes else effort.margin_of_many

    def guess(found: tuple[int, Iterator[Keys]]) -> tuple[int, list[Window]]:
        index, samples = found
        return index, _guess_of_scope(list(samples), scopes[index], source.n_models, margin)

    return dict(parallel.map_in_order(guess, zip(indices, sampled, strict=True), threads=source.threads))


def _sample_runs(scope: Scope, n_models: int, effort: Effort) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Yield (tensor, offsets, elements of each) of runs, one in each of equal parts of the scope, anywhere within it.

    Anywhere, so that no period of the scope (its rows, its layers) is met at the same place each time.
    """
    starts = [start for _, _, start in scope.tensors]
    n_runs = scope.n_elements // effort.elements_per_sample_run
    n_runs = min(max(n_runs, effort.min_sample_runs), effort.max_sample_runs)
    length = max(1, min(effort.sample_run_elements, effort.max_sampled // (n_runs * n_models)))
    indices = (int((run + (run * GOLDEN_RATIO + 0.5) % 1.0) * scope.n_elements / n_runs) for run in range(n_runs))
    for number, within in groupby(indices, lambda index: bisect_right(starts, index) - 1):
        name, size, start = scope.tensors[number]
        n_elements = min(size, length)
        yield name, tuple(min(index - start, size - n_elements) for index in within), n_elements


def _read_sample(source: PieceSource, tensor: str, offsets: Sequence[int], n_elements: int) -> Keys:
    """Return the bits of |τ| of runs of one tensor, [n_models, runs, n_elements]."""
    rows = source.rows(tensor, offsets[0], n_elements) if fused.is_ready() else None
    if rows is not None and rows.are_stored:
        with suppress(NotClean):
            return fused.read_keys(rows, np.array(offsets) - offsets[0]).reshape(-1, len(offsets), n_elements)
    return np.stack([keys_of(source.read(tensor, offset, n_elements)) for offset in offsets], axis=1)


def _guess_of_scope(samples: Sequence[Keys], scope: Scope, n_models: int, margin: float) -> list[Window]:
    windows: list[Window] = []
    for model in range(n_models):
        sample = _Sample([of_tensor[model] for of_tensor in samples])
        for rank in scope.searched_ranks:
            windows.append(Window(model, rank, *sample.bracket(rank / scope.n_elements, margin)))
    return windows


class _Sample:
    """The keys of a model that were sampled: runs of each tensor, [runs, elements]."""

    def __init__(self, of_tensors: Sequence[Keys]) -> None:
        self._of_tensors = of_tensors
        self._lengths = np.repeat([runs.shape[1] for runs in of_tensors], [len(runs) for runs in of_tensors])
        self._entries = np.concatenate([runs.ravel() for runs in of_tensors])
        self._some = np.sort(self._entries[:: max(1, len(self._entries) // MIDDLE_OF)])

    def bracket(self, share: float, margin: float) -> tuple[int, int]:
        """Return keys between which the quantile lies: the sample's, some standard errors to each side.

        The error is that of a sample with one run in each part of the scope: what neighboring runs differ by (a ratio
        estimate). Entries of a run are alike, so that it counts as one; tensors that differ widely do no harm.
        """
        n, n_runs, some = len(self._entries), len(self._lengths), self._some
        middle = some[min(len(some) - 1, int((1 - share) * len(some)))]
        n_above = np.concatenate([np.count_nonzero(runs >= middle, axis=1) for runs in self._of_tensors])
        excess = n_above - n_above.sum() / n * self._lengths
        steps = np.diff(excess) if n_runs > 1 else excess
        # each of n runs varies by half of what two do, and there are n - 1 steps
        variance = float(np.square(steps).mean()) / (2 if n_runs > 1 else 1) * n_runs
        reach = margin * sqrt(variance) + 2  # in entries of the sample
        below, above = int((1 - share) * n - reach), int((1 - share) * n + reach) + 1
        low, high = _at(self._entries, max(0, below), min(n - 1, above), some)
        return low if below >= 0 else 0, high if above < n else LARGEST_KEY


def _at(entries: Keys, below: int, above: int, some: Keys) -> tuple[int, int]:
    """Return the entries that have two indices when they are ordered; some of them, ordered, tell where to look."""
    n, n_some = len(entries), len(some)
    slack = int(6 * sqrt(n_some / 4))  # six standard errors of a rank
    lowest = some[max(0, below * n_some // n - slack)]
    near = entries[(entries >= lowest) & (entries <= some[min(n_some - 1, above * n_some // n + slack)])]
    n_before = int(np.count_nonzero(entries < lowest))
    if not n_before <= below <= above < n_before + len(near):
        near, n_before = entries, 0  # ordered in place: nobody asks for their order
    near.partition([below - n_before, above - n_before])
    return int(near[below - n_before]), int(near[above - n_before])
