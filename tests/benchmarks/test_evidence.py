"""The evidence: what is measured is kept and not measured again, and its page is what its data say."""

from pathlib import Path

import pytest

from benchmarks.evidence import accuracy, page
from benchmarks.evidence.laboratory import round_robin
from benchmarks.evidence.ledger import Ledger


def test_a_number_is_measured_once_and_outlives_the_process(tmp_path: Path) -> None:
    calls: list[str] = []

    def measure() -> int:
        calls.append("measured")
        return 7

    place = tmp_path / "evidence" / "measured.jsonl"
    first = Ledger(place).recall({"of": "a", "at": 1}, measure)
    again = Ledger(place).recall({"at": 1, "of": "a"}, measure)
    other = Ledger(place).find({"of": "a", "at": 2})

    assert (first, again, other, calls) == (7, 7, None, ["measured"])


def test_means_and_intervals_of_counts() -> None:
    counts = {"one": (50, 100), "two": (90, 100)}

    assert accuracy.mean(counts) == pytest.approx(0.7)
    assert accuracy.normalized(counts, {"one": (100, 100), "two": (60, 100)}) == pytest.approx((0.5 + 1.5) / 2)
    # variances 0.25/100 and 0.09/100: 1.96 * sqrt(0.0034) / 2
    assert accuracy.half_width(counts) == pytest.approx(1.96 * 0.0034**0.5 / 2, rel=1e-4)


def test_subsets_go_round_and_with_one_for_each_model_all_occur_alike() -> None:
    subsets = round_robin(5, 3, 5)

    assert subsets == [(0, 1, 2), (1, 2, 3), (2, 3, 4), (0, 3, 4), (0, 1, 4)]
    assert round_robin(5, 3, 2) == subsets[:2]
    assert round_robin(5, 5, 3) == [(0, 1, 2, 3, 4)]


@pytest.mark.parametrize("experiment", page.EXPERIMENTS, ids=lambda experiment: experiment.NAME)
def test_the_page_says_what_the_data_say(experiment: page.Experiment) -> None:
    found = page.read(experiment)
    text = page.PAGE.read_text(encoding="utf-8")

    if found is None:
        assert page.NOT_RUN.format(title=experiment.TITLE, name=experiment.NAME) in text
        return
    assert f"## {experiment.TITLE}\n\n{experiment.tell(found)}" in text
    for name in experiment.draw(found):
        assert f"(evidence/{name}.svg)" in text
        assert (page.FOLDER / f"{name}.svg").is_file()
