"""The evidence: what is measured is kept and not measured again, and its page is what its data say."""

import pickle
from pathlib import Path

import pytest

from benchmarks.evidence import accuracy, adapter_verdict, increments, learned, overview, page, settings
from benchmarks.evidence.laboratory import round_robin
from benchmarks.evidence.ledger import Ledger
from benchmarks.evidence.lessons import Lesson


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


def test_a_choice_at_the_end_of_its_grid_is_marked_and_freezing_is_judged() -> None:
    def point(n_tasks: int, frozen: int, tuned: int, coefficient: float) -> dict[str, object]:
        counts = {"frozen": {"a": [frozen, 128], "b": [100, 128]}, "tuned": {"a": [tuned, 128], "b": [100, 128]}}
        return {"n_tasks": n_tasks, "coefficient": coefficient, **counts}

    def curve(method: str, frozen: int) -> dict[str, object]:
        return {
            "method": method,
            "grid": {"scaling_coefficient": [0.5, 1.0, 2.0]},
            "frozen_parameters": {"scaling_coefficient": 1.0},
            "margin": 2,
            "points": [point(2, 100, 100, 1.0), point(3, frozen, 100, 2.0)],
        }

    def tell(own: int, other: int) -> str:
        curves = [curve("breadcrumbs", own), curve("task_arithmetic", other)]
        return increments.tell(
            {"tasks": ["a", "b"], "individual": {"a": [110, 128], "b": [110, 128]}, "curves": curves}
        )

    assert "frozen (scaling coefficient 1) |" in tell(80, 90)
    assert r"0.909 (2\*) |" in tell(80, 90)
    assert "Not so here: the most that freezing costs is Breadcrumbs 7.8, task arithmetic 3.9 points" in tell(80, 90)
    assert "So it looks here, but within half an interval" in tell(90, 80)
    assert "So it is here" in tell(100, 60)
    assert "the first is taken): Breadcrumbs 2, task arithmetic 2." in tell(80, 90)


def test_linearized_adapters_are_judged_against_updates_and_against_factors() -> None:
    def run(technique: str, seed: int, average: int, of_factors: int | None = None) -> dict[str, object]:
        def counts(correct: int) -> dict[str, object]:
            return {"test": {f"task {place}": [correct, 128] for place in range(5)}, "parameters": {}}

        merged = {method: counts(average) for method in ("average", "task_arithmetic", "ties", "lorahub")}
        factors = (
            {}
            if of_factors is None
            else {"of_factors": {method: counts(of_factors) for method in ("average", "task_arithmetic")}}
        )
        individual = {f"task {place}": [120, 128] for place in range(5)}
        return {"technique": technique, "seed": seed, "individual": individual, "merged": merged, **factors}

    found = {
        "runs": [
            run("lora", 0, 110, 100),
            run("linearized_lora", 0, 105),
            run("lora", 1, 110, 104),
            run("linearized_lora", 1, 106),
        ],
    }

    text = adapter_verdict.verdict(found)

    assert "with each of 2 seeds" in text
    assert "in absolute accuracy better by no method, worse by average, task arithmetic, ties" in text
    assert "in absolute accuracy better by average of factors, task arithmetic of factors, worse by lorahub" in text
    assert "average of factors +2.7, task arithmetic of factors +2.7" in text
    assert "LoRA's updates merged are better than L-LoRA by average, task arithmetic, ties" in text
