"""Counts of right answers, and what they say: means, normalized means, intervals."""

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean

from pydantic import JsonValue

Counts = Mapping[str, Sequence[int]]  # task name -> [correct, total]
Z = 1.959963984540054  # the normal distribution's 0.975 quantile


def share(counts: Counts, task: str) -> float:
    """Return the accuracy on a task, in [0, 1]."""
    correct, total = counts[task]
    return correct / total


def mean(counts: Counts) -> float:
    """Return the mean accuracy over the tasks."""
    return fmean(share(counts, task) for task in counts)


def normalized(counts: Counts, individual: Counts) -> float:
    """Return the mean over the tasks of accuracy divided by that of the task's own model."""
    return fmean(share(counts, task) / share(individual, task) for task in counts)


def half_width(counts: Counts) -> float:
    """Return half the 95 % interval of the mean accuracy: of the examples that were drawn, not of the training."""
    variances = [share(counts, task) * (1 - share(counts, task)) / counts[task][1] for task in counts]
    return Z * sqrt(sum(variances)) / len(counts)


def percent(value: float) -> str:
    """Return a share as a number of percent."""
    return f"{100 * value:.1f}"


def plain(counts: Counts) -> dict[str, JsonValue]:
    """Return counts as JSON."""
    return {task: list(pair) for task, pair in counts.items()}
