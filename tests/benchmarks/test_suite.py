"""Rows of the suite's table: measured from memory or from patches, they say what the merged files say."""

from pathlib import Path

import pytest

from app.domain.catalog import load_catalog
from benchmarks.suite import merging
from benchmarks.suite.inputs import Suite
from benchmarks.suite.recipes import GRID, Parameters, find_best
from tests.workers.learning.world import make_world


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


def test_a_row_of_patches_has_each_task_s_own_model(suite: Suite) -> None:
    card = load_catalog().method("peru_fft")
    found = merging._measure_patched(suite, card, {"density": 1.0}, "test")  # patches that keep everything
    own = [suite.measure(model, "test", tasks=[task]) for task, model in zip(suite.tasks, suite.models, strict=True)]
    assert found == own[0] | own[1]
    assert [total for _, total in found.values()] == [6, 6]


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
