"""Scores against brute force, and intervals against numbers from the literature."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.tasks import LocalTask, OwnHead, TaskSpec
from workers.scoring import answers, classes
from workers.scoring.intervals import resample_counts, resample_examples, share_interval


def make_task(metric: str, names: tuple[str, ...] = ("a", "b", "c")) -> LocalTask:
    spec = TaskSpec(name="t", kind="text-classification", dataset={}, classes=names, head=OwnHead(), metric=metric)
    return LocalTask(id="task_t", spec=spec, files={})


def correlate_classes(labels: Sequence[int], predicted: Sequence[int]) -> float:
    """Return the Matthews correlation as what it is: the correlation of two indicator matrices."""
    columns = sorted({*labels, *predicted})
    one, other = (
        np.array([[float(value == column) for column in columns] for value in values]) for values in (labels, predicted)
    )
    one, other = one - one.mean(0), other - other.mean(0)
    spread = float((one**2).sum() * (other**2).sum()) ** 0.5
    return float((one * other).sum()) / spread if spread > 1e-12 else 0.0


def average_f1(labels: Sequence[int], predicted: Sequence[int], n_classes: int) -> float:
    scores = []
    for index in range(n_classes):
        hits = sum(label == guess == index for label, guess in zip(labels, predicted, strict=True))
        precision = hits / max(1, sum(guess == index for guess in predicted))
        recall = hits / max(1, sum(label == index for label in labels))
        scores.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return sum(scores) / n_classes


def correlate_ranks(one: Sequence[float], other: Sequence[float]) -> float:
    def rank(values: Sequence[float]) -> list[float]:
        return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]

    return float(np.corrcoef(rank(one), rank(other))[0, 1])


pairs = st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 2)), min_size=1, max_size=30)


@settings(max_examples=30, deadline=None)
@given(pairs)
def test_scores_are_those_of_brute_force(found: list[tuple[int, int]]) -> None:
    labels, predicted = [label for label, _ in found], [guess for _, guess in found]
    expected = {
        "accuracy": float(np.mean(np.array(labels) == np.array(predicted))),
        "f1": average_f1(labels, predicted, 3),
        "matthews": correlate_classes(labels, predicted),
    }
    for metric, value in expected.items():
        assert classes.score(make_task(metric), "test", labels, predicted).value == pytest.approx(value, abs=1e-12)


def test_f1_of_two_classes_is_that_of_the_second() -> None:
    found = classes.score(make_task("f1", ("no", "yes")), "test", [1, 1, 0, 0], [1, 0, 1, 1])
    assert found.value == pytest.approx(2 * 1 / (2 + 3))  # one hit, two are "yes", three are called so


def test_details_count_per_class() -> None:
    found = classes.score(make_task("accuracy"), "test", [0, 0, 1, 2], [0, 1, 1, classes.NO_CLASS])
    rows = [(row.name, row.n, row.n_predicted, row.n_correct) for row in found.details.per_class]
    assert rows == [("a", 2, 1, 1), ("b", 1, 2, 1), ("c", 1, 0, 0)]
    assert (found.value, found.n, found.details.n_correct) == (0.5, 4, 2)


@pytest.mark.parametrize(
    ("n_hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0)],
)  # Newcombe 1998, table I, method 3
def test_shares_have_wilson_s_interval(n_hits: int, n: int, low: float, high: float) -> None:
    found = share_interval(n_hits, n)
    assert [found.low, found.high] == pytest.approx([low, high], abs=5e-5)


def test_the_bootstrap_of_a_mean_is_the_normal_interval_where_n_is_large() -> None:
    values = np.random.default_rng(5).normal(3.0, 2.0, size=2000)
    stderr, interval = resample_examples(len(values), lambda chosen: float(values[chosen].mean()))
    expected = values.std() / 2000**0.5
    assert stderr == pytest.approx(expected, rel=0.1)
    assert interval is not None
    assert interval.low == pytest.approx(values.mean() - 1.96 * expected, abs=0.2 * expected)
    assert interval.high == pytest.approx(values.mean() + 1.96 * expected, abs=0.2 * expected)


def test_resampling_counts_is_resampling_examples() -> None:
    counts = np.array([130, 70])
    stderr, _ = resample_counts(counts, lambda drawn: drawn[0] / drawn.sum())
    assert stderr == pytest.approx((0.65 * 0.35 / 200) ** 0.5, rel=0.1)
    assert resample_counts(counts, lambda drawn: drawn[0] / drawn.sum())[0] == stderr  # the same draws every time


def test_a_single_example_has_no_spread() -> None:
    assert resample_examples(1, lambda _: 0.0) == (None, None)


@pytest.mark.parametrize(
    ("answer", "wanted", "expected"),
    [
        ("the cat sat", "A cat sat.", 1.0),  # articles, case and punctuation do not count
        ("cat cat", "cat", 2 * 0.5 / 1.5),
        ("dog", "cat", 0.0),
        ("", "", 1.0),
        ("", "cat", 0.0),
    ],
)
def test_token_f1_is_the_overlap_of_words(answer: str, wanted: str, expected: float) -> None:
    assert answers.token_f1(answer, wanted) == pytest.approx(expected)


def test_spearman_correlates_ranks_with_unparsable_answers_as_zero() -> None:
    given_, wanted = ["1.5", "so so", "4", "4.0", "-1", "nan"], ["2", "0.5", "5", "3", "1", "2"]
    task = make_task("spearman", ())
    found = answers.score(task, "test", given_, wanted)
    assert found.value == pytest.approx(correlate_ranks([1.5, 0, 4, 4, -1, 0], [2, 0.5, 5, 3, 1, 2]))
    assert (found.unit, found.details.counts) == ("correlation", {"n_unparsable": 2})
    assert answers.score(task, "test", ["1", "1"], ["1", "2"]).value == 0.0  # a constant goes with nothing


def test_an_answer_that_is_no_class_is_wrong() -> None:
    task = make_task("matthews", ("bad", "good"))
    found = answers.score(task, "test", ["good", " Bad", "great", "bad"], ["good", "bad", "good", "bad"])
    assert found.value == pytest.approx(correlate_classes([1, 0, 1, 0], [1, 0, 2, 0]))
    assert found.details.n_correct == 3


def test_exact_match_of_classes_counts_per_class() -> None:
    given_, wanted = ["good", " Bad", "great", "bad"], ["good", "bad", "good", "good"]
    found = answers.score(make_task("exact_match", ("bad", "good")), "test", given_, wanted)
    plain = answers.score(make_task("exact_match", ()), "test", given_, wanted)
    rows = [(row.name, row.n, row.n_predicted, row.n_correct) for row in found.details.per_class]
    assert rows == [("bad", 1, 2, 1), ("good", 3, 1, 1)]
    assert plain.details.per_class == ()
    without = {"details": found.details.model_copy(update={"per_class": ()})}
    assert found.model_copy(update=without) == plain  # the number and all else are the same


def test_exact_match_counts_what_is_equal_but_for_case_and_outer_space() -> None:
    found = answers.score(make_task("exact_match", ()), "test", ["Yes ", "no", "maybe"], ["yes", "no", "no"])
    assert found.value == pytest.approx(2 / 3)
    assert found.details.n_correct == 2
    assert found.details.interval is not None
    assert found.details.interval.method == "wilson"
