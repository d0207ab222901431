"""From predicted classes to accuracy, F1 or Matthews correlation, with counts per class.

Everything is computed from counts over the whole split, never from means over batches, so the batch size cannot show.

Source: Matthews 1975 and Gorodkin 2004 for the correlation of more than two classes.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from app.domain.tasks import ClassScore, Interval, LocalTask, Measurement, MeasurementDetails
from workers.scoring.intervals import Integers, resample_counts, share_interval

NO_CLASS = -1  # a prediction that is none of the classes

Counts = Callable[[Integers, Integers, Integers], float]  # per class: examples, predictions, hits -> the number


def f1(examples: Integers, predictions: Integers, hits: Integers) -> float:
    """Return the F1 of the second of two classes, as GLUE has it; of more classes, the mean of each one's F1.

    examples, predictions, hits: [n_classes]. A class that neither occurs nor is predicted has F1 0.
    """
    total = examples + predictions
    scores = np.divide(2.0 * hits, total, out=np.zeros(len(total)), where=total > 0)
    return float(scores[1] if len(scores) == 2 else scores.mean())


def matthews(examples: Integers, predictions: Integers, hits: Integers) -> float:
    """Return the Matthews correlation; 0 where there is a single label, or a single prediction.

    examples, predictions, hits: [n_classes]. Predictions of no class count as one more class.
    """
    n = int(examples.sum())
    strays = n - int(predictions.sum())
    spread_of_labels = n**2 - float((examples.astype(np.float64) ** 2).sum())
    spread_of_predictions = n**2 - float((predictions.astype(np.float64) ** 2).sum()) - strays**2
    if spread_of_labels <= 0 or spread_of_predictions <= 0:
        return 0.0
    agreement = n * float(hits.sum()) - float((examples.astype(np.float64) * predictions).sum())
    return agreement / math.sqrt(spread_of_labels * spread_of_predictions)


METRICS: dict[str, Counts] = {"f1": f1, "matthews": matthews}
UNITS = {"f1": "fraction", "matthews": "correlation"}


def score(task: LocalTask, split: str, labels: Sequence[int], predicted: Sequence[int]) -> Measurement:
    """Return the task's metric (accuracy, f1, matthews) of predictions; both are class indices, one per example.

    A prediction may be NO_CLASS, which is wrong.
    """
    truth, guess = np.asarray(labels, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    per_class = _score_classes(task.spec.classes, truth, guess)
    n, n_correct = len(truth), sum(row.n_correct for row in per_class)
    metric = task.spec.metric
    if metric in METRICS:
        value, stderr, interval = _resample(truth, guess, len(task.spec.classes), METRICS[metric])
    else:
        value, interval = n_correct / n, share_interval(n_correct, n)
        stderr = math.sqrt(value * (1 - value) / n)
    return Measurement(
        task=task.id,
        name=metric,
        value=value,
        unit=UNITS.get(metric, "fraction"),
        split=split,
        n=n,
        stderr=stderr,
        details=MeasurementDetails(interval=interval, n_correct=n_correct, per_class=per_class),
    )


def _score_classes(names: Sequence[str], labels: Integers, predicted: Integers) -> tuple[ClassScore, ...]:
    examples, predictions, hits = _count(labels, predicted, np.ones(len(labels), dtype=np.int64), len(names))
    rows = zip(names, examples.tolist(), predictions.tolist(), hits.tolist(), strict=True)
    return tuple(ClassScore(name=name, n=n, n_predicted=guesses, n_correct=hit) for name, n, guesses, hit in rows)


def _resample(
    labels: Integers, predicted: Integers, n_classes: int, metric: Counts
) -> tuple[float, float | None, Interval | None]:
    width = n_classes + 1  # the last column: predictions of no class
    cells, counts = np.unique(labels * width + predicted % width, return_counts=True)
    rows, columns = cells // width, cells % width

    def statistic(drawn: Integers) -> float:
        return metric(*_count(rows, columns, drawn, n_classes))

    return statistic(counts), *resample_counts(counts, statistic)


def _count(
    labels: Integers, predicted: Integers, weights: Integers, n_classes: int
) -> tuple[Integers, Integers, Integers]:
    """Return examples, predictions and hits per class; each pair of label and prediction counts by its weight."""

    def tally(classes: Integers, chosen: NDArray[np.bool_]) -> Integers:
        found = np.bincount(classes[chosen], weights=weights[chosen], minlength=n_classes)
        return found.astype(np.int64)

    is_class = (predicted >= 0) & (predicted < n_classes)
    every = np.ones(len(labels), dtype=np.bool_)
    return tally(labels, every), tally(predicted, is_class), tally(labels, labels == predicted)
