"""The evidence: what is measured is kept and not measured again, and its page is what its data say."""

import json
import pickle
from pathlib import Path

import pytest

from benchmarks.evidence import accuracy, adapter_verdict, increments, learned, overview, page, settings
from benchmarks.evidence.laboratory import round_robin
from benchmarks.evidence.ledger import Ledger
from benchmarks.evidence.merging import Lesson


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


def test_processes_that_run_at_once_see_what_the_others_measured(tmp_path: Path) -> None:
    place = tmp_path / "measured.jsonl"
    one, other = Ledger(place), Ledger(place)

    one.keep({"of": "a"}, 1)
    assert other.find({"of": "a"}) == 1
    other.keep({"of": "b"}, 2)
    with place.open("a", encoding="utf-8") as file:
        file.write('{"of": {"of": "c"}')  # a process was killed while it wrote

    assert (one.find({"of": "b"}), one.find({"of": "c"})) == (2, None)


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


def test_the_kept_numbers_show_what_every_paper_on_task_vectors_shows() -> None:
    assert overview.broken_orders(page.read(overview)) == []


def test_an_order_that_does_not_hold_is_named() -> None:
    def row(method: str, correct: int) -> dict[str, object]:
        return {"method": method, "counts": {"task": [correct, 100]}}

    points = {"individual": 90, "task_arithmetic": 80, "average": 78, "pre-trained": 70}
    found = {
        "rows": [row(method, correct) for method, correct in points.items()],
        "sweep": [
            {"coefficient": one, "validation": {"task": [correct, 100]}}
            for one, correct in {0.1: 70, 0.5: 80, 1.2: 75}.items()
        ],
    }

    assert overview.broken_orders(found) == ["task arithmetic is 3 points above the average"]


def test_what_takes_long_is_measured_by_its_name_alone() -> None:
    assert {one.NAME for one in page.APART} == {"adamerging_long", "localize_and_stitch"}
    assert set(page.APART) <= set(page.EXPERIMENTS)


@pytest.mark.parametrize("experiment", page.EXPERIMENTS, ids=lambda experiment: experiment.NAME)
def test_parts_of_experiments_reach_other_processes(experiment: page.Experiment) -> None:
    parts = experiment.parts()

    again = pickle.loads(pickle.dumps(parts))

    assert len(again) == len(parts) > 0


def test_a_merge_that_looked_at_validation_is_measured_on_test_alone() -> None:
    assert Lesson("adamerging", {}).measured == ("test",)
    assert Lesson("localize_and_stitch", {}, split="train").measured == ("validation", "test")


def test_learning_is_above_the_best_without_data_only_beyond_half_an_interval() -> None:
    def counts(correct: int) -> dict[str, list[int]]:
        return {"task": [correct, 1000]}  # half an interval at 80 % is 2.5 points

    def operate(method: str, before: int, after: int) -> dict[str, object]:
        told = {"modules": [{"losses": [{"step": 1, "loss": 0.4}, *[{"step": 2, "loss": 0.1}] * 20]}]}
        shared = {"method": method, "parameters": {}}
        distances = {"before": [0.4, 0.2], "after": [0.2, 0.2]}
        return {
            "shared": shared,
            "before": counts(before),
            "test": counts(after),
            "learned": told,
            "distances": distances,
        }

    losses = [{"step": step, "loss": 4.0 - step} for step in range(4)]
    text = learned.tell(
        {
            "individual": counts(850),
            "best_dense": {"method": "tsv_m", "counts": counts(800)},
            "learned": [{"method": "adamerging", "test": counts(820), "learned": {"losses": losses}}],
            "operated": [operate("task_arithmetic", 750, 830), operate("tsv_m", 800, 810)],
        }
    )

    assert "more than half an interval (2.5 points): surgery over task arithmetic.\n" in text
    assert "changes the merge under it by +8.0 over task arithmetic, +1.0 over tsv m, in points" in text
    assert "falls to 25 %, 25 % of what it was" in text
    assert "and to 75 %, 75 % on" in text
    assert "AdaMerging wins +7.0 points over task arithmetic" in text
    assert "4.00 in the first quarter of the steps, 1.00 in the last" in text
    assert "score +5.0 points against the best method\nwithout data" in text


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


def test_the_page_names_every_setting() -> None:
    assert settings.tell() in page.PAGE.read_text(encoding="utf-8")
