"""Rows of the suite's table: measured from memory or from patches, they say what the merged files say."""

from pathlib import Path

import pytest

from app.domain.catalog import load_catalog
from benchmarks.suite import merging, page, rows
from benchmarks.suite.groups import GROUPS, group_of
from benchmarks.suite.inputs import Suite
from benchmarks.suite.recipes import GRID, SWEEPS, WEIGHT, Parameters, find_best, why_left_out
from tests.workers.learning.world import make_world

LORA = next(group for group in GROUPS if group.folder == "lora")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """Two models near a tiny base, a task for each."""
    world = make_world(tmp_path_factory.mktemp("suite"))
    return Suite(world.base, world.tasks, world.models)


def test_a_dense_row_has_the_numbers_of_the_merged_files(suite: Suite, tmp_path: Path) -> None:
    card = load_catalog().method("task_arithmetic")
    row = merging.measure_method(suite, card)
    merged = merging._merge(suite, card, row["parameters"], tmp_path / "merged")
    assert row["counts"] == suite.measure(merged, "test")
    assert row["validation"] == merging.mean_accuracy(suite.measure(merged, "validation"))
    assert 1 < row["n_tried"] <= len(GRID)


def test_a_row_behind_a_post_step_has_the_numbers_of_the_merged_files(suite: Suite, tmp_path: Path) -> None:
    method, post_step = rows.cards_of("task_arithmetic+svc")
    row = merging.measure_method(suite, method, post_step)
    assert (row["method"], row["post_step"]) == ("task_arithmetic", "svc")
    merged = merging._merge(suite, method, row["parameters"], tmp_path / "merged", post_step)
    assert row["counts"] == suite.measure(merged, "test")
    plain = merging._merge(suite, method, row["parameters"], tmp_path / "plain")
    assert merged.manifest.weights_digest != plain.manifest.weights_digest
    assert "[`task_arithmetic`](methods/task_arithmetic.md) + [`svc`]" in page._row(row, list(row["counts"]), row)


def test_a_row_of_patches_has_each_task_s_own_model(suite: Suite) -> None:
    card = load_catalog().method("peru_fft")
    found = merging._measure_written(suite, card, {"density": 1.0}, "test")  # patches that keep everything
    assert found == merging.measure_each(suite, suite.models, "test")
    assert [total for _, total in found.values()] == [6, 6]


@pytest.fixture(scope="module")
def adapters(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """Adapters of the same models, and nothing whole beside them."""
    card, folder = load_catalog().method("lora_extract"), tmp_path_factory.mktemp("adapters")
    made = [
        merging._merge(suite.only([place]), card, {"vectors": "skip", "embeddings": "skip"}, folder / str(place))
        for place in range(len(suite.models))
    ]
    return Suite(suite.base, suite.tasks, tuple(made))


def test_extracted_adapters_are_each_measured_on_their_own_task(suite: Suite) -> None:
    card = load_catalog().method("lora_extract")  # its default rank is more than these matrices have
    row = merging.measure_method(suite, card)
    assert row["counts"] == merging.measure_each(suite, suite.models, "test")
    assert row["n_tried"] == 1


def test_a_merge_of_adapters_is_measured_as_the_model_it_makes(adapters: Suite, tmp_path: Path) -> None:
    card = load_catalog().method("peft_combination")
    found = merging._measure_written(adapters, card, {"combination_type": "cat", "weight": 0.5}, "test")
    sums = load_catalog().method("task_arithmetic")
    measure = merging._measurer(adapters, sums, tmp_path)
    assert found == measure({"scaling_coefficient": 0.5}, "test")  # of the updates


def test_a_method_of_one_model_moves_the_first_towards_the_second(suite: Suite, tmp_path: Path) -> None:
    measure = merging._measurer(suite, load_catalog().method("nearswap"), tmp_path)
    assert measure({"max_change": 1e-30}, "test") == suite.measure(suite.models[0], "test")
    assert measure({"max_change": 1e9}, "test") == suite.measure(suite.models[1], "test")


def test_a_number_is_put_in_its_place_and_found_there() -> None:
    sweep = SWEEPS["peru_fft"]
    assert sweep is not None
    put = sweep.put(0.3)
    assert put == {"shared": {"method": "task_arithmetic", "parameters": {"scaling_coefficient": 0.3}}}
    assert sweep.find(put) == 0.3
    assert sweep.find({"density": 0.1}) is None
    for name, other in SWEEPS.items():
        if other is None:
            continue
        parameters = {key: value for key, value in other.put(other.start).items() if key != WEIGHT}
        load_catalog().check(
            name, parameters, has_base_model=True, weights=[1.0] * (load_catalog().method(name).max_models or 5)
        )


def test_every_method_has_a_row_or_it_is_said_why_not() -> None:
    named = [group.rows for group in GROUPS]
    reasons = {card.name: why_left_out(card, named) for card in load_catalog().methods}
    assert {name for name, reason in reasons.items() if reason.endswith("merges nothing")} == {
        "lora_fuse",
        "passthrough",
    }
    assert all(
        reason in ("", "looks at data") for name, reason in reasons.items() if name not in ("lora_fuse", "passthrough")
    )
    assert group_of("lora/knots") == (LORA, "knots")
    with pytest.raises(ValueError, match="found --method lora/nothing, expected rows of the tables: pre-trained"):
        group_of("lora/nothing")


def test_the_page_has_a_table_for_each_group_that_is_measured() -> None:
    counts = {"one": (128, 256), "two": (256, 256)}
    alone = {"method": "individual", "counts": counts}
    merged = {
        "method": "knots",
        "produces": "adapter",
        "parameters": {"merge": {"method": "ties", "parameters": {"scaling_coefficient": 0.7}}},
        "counts": {"one": (64, 256), "two": (256, 256)},
    }
    written = page.render(
        [page.Table(GROUPS[0], [alone]), page.Table(LORA, [alone, merged]), page.Table(GROUPS[-1], [])], {}, seed=0
    )
    assert "## LoRA adapters" in written
    assert GROUPS[-1].title not in written
    # normalized: half of its own, and all of it
    assert "| [`knots`](methods/knots.md) | 25.0 | 100.0 | 62.5 | 0.750 | `merge`'s coefficient 0.7 |" in written


def test_the_search_walks_uphill_from_the_middle_and_tries_no_value_twice() -> None:
    tried: list[float] = []

    def score(parameters: Parameters) -> float:
        coefficient = parameters["scaling_coefficient"]
        assert isinstance(coefficient, float)
        tried.append(coefficient)
        return -abs(coefficient - 0.5)

    best = find_best(load_catalog().method("task_arithmetic"), score)
    assert best.parameters == {"scaling_coefficient": 0.5}
    assert tried == [0.7, 1.0, 0.5, 0.3]  # 0.3 is worse; and back up there is nothing new to try
    assert best.n_tried == 4
