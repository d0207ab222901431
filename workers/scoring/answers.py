"""From generated answers to exact match, overlap of words, scores of classes, or a rank correlation.

Answers are compared without outer space and case. What is none of a task's classes is wrong; where numbers are wanted,
what is no number counts as 0, and how many there were is said.

Source: Rajpurkar et al. 2016, arXiv:1606.05250, for the overlap of words; Wang et al. 2019, arXiv:1804.07461 (GLUE) for
Matthews and Spearman correlation as tasks' metrics.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from app.domain.tasks import LocalTask, Measurement, MeasurementDetails
from workers.scoring import classes
from workers.scoring.intervals import Floats, resample_examples, share_interval

OF_CLASSES = frozenset({"f1", "matthews"})  # metrics of tasks whose answers are class names
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score(task: LocalTask, split: str, given: Sequence[str], wanted: Sequence[str]) -> Measurement:
    """Return the task's metric (exact_match, token_f1, f1, matthews, spearman) of answers, one per example.

    Where the answers are classes they are counted per class, too, unless words are (token_f1).
    """
    metric = task.spec.metric
    if metric in OF_CLASSES or (metric == "exact_match" and task.spec.classes):
        names = {_plain(name): index for index, name in enumerate(task.spec.classes)}
        labels = [names[_plain(answer)] for answer in wanted]
        return classes.score(task, split, labels, [names.get(_plain(answer), classes.NO_CLASS) for answer in given])
    if metric == "spearman":
        return _score_ranks(task, split, given, wanted)
    if metric == "token_f1":
        return _score_overlap(task, split, given, wanted)
    hits = [_plain(answer) == _plain(right) for answer, right in zip(given, wanted, strict=True)]
    n, n_correct = len(hits), sum(hits)
    share = n_correct / n
    details = MeasurementDetails(interval=share_interval(n_correct, n), n_correct=n_correct)
    stderr = math.sqrt(share * (1 - share) / n)
    return Measurement(task=task.id, name=metric, value=share, split=split, n=n, stderr=stderr, details=details)


def token_f1(given: str, wanted: str) -> float:
    """Return the F1 of two answers' words, without articles, case and punctuation; two empty answers agree."""
    found, right = _words(given), _words(wanted)
    if not found or not right:
        return float(found == right)
    n_shared = (Counter(found) & Counter(right)).total()
    return 2 * n_shared / (len(found) + len(right))


def spearman(first: Floats, second: Floats) -> float:
    """Return the rank correlation of two sequences [n], equal values sharing their mean rank; 0 for a constant."""
    ranks, others = _ranks(first), _ranks(second)
    ranks, others = ranks - ranks.mean(), others - others.mean()
    spread = math.sqrt(float((ranks**2).sum()) * float((others**2).sum()))
    return float((ranks * others).sum()) / spread if spread > 0 else 0.0


def _score_overlap(task: LocalTask, split: str, given: Sequence[str], wanted: Sequence[str]) -> Measurement:
    scores = np.array([token_f1(answer, right) for answer, right in zip(given, wanted, strict=True)])
    n = len(scores)
    _, interval = resample_examples(n, lambda chosen: float(scores[chosen].mean()))
    return Measurement(
        task=task.id,
        name="token_f1",
        value=float(scores.mean()),
        split=split,
        n=n,
        stderr=float(scores.std(ddof=1)) / math.sqrt(n) if n > 1 else None,
        details=MeasurementDetails(interval=interval),
    )


def _score_ranks(task: LocalTask, split: str, given: Sequence[str], wanted: Sequence[str]) -> Measurement:
    parsed = [_number(answer) for answer in given]
    found = np.array([0.0 if number is None else number for number in parsed])
    right = np.array([_number(answer) or 0.0 for answer in wanted])
    stderr, interval = resample_examples(len(found), lambda chosen: spearman(found[chosen], right[chosen]))
    return Measurement(
        task=task.id,
        name="spearman",
        value=spearman(found, right),
        unit="correlation",
        split=split,
        n=len(found),
        stderr=stderr,
        details=MeasurementDetails(interval=interval, counts={"n_unparsable": parsed.count(None)}),
    )


def _ranks(values: Floats) -> Floats:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[places]
    return ranks


def _number(answer: str) -> float | None:
    try:
        number = float(answer)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _plain(answer: str) -> str:
    return answer.strip().casefold()


def _words(answer: str) -> list[str]:
    return _ARTICLES.sub(" ", answer.casefold().translate(_NO_PUNCTUATION)).split()
