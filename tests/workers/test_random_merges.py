"""Random recipes: refused by a named error, or merged to the same bytes however they are cut; many are a command.

`python -m tests.workers.random_merges --n 10000`
"""

from pathlib import Path

import pytest

from app.domain.catalog import load_catalog
from tests.workers import random_merges
from tests.workers.random_models import write_sets

RUNS, PER_RUN = 8, 25


@pytest.mark.parametrize("part", range(RUNS))
def test_a_random_recipe_is_merged_whatever_the_cut_or_refused_by_name(part: int, tmp_path: Path) -> None:
    catalog, sets = load_catalog(), write_sets(tmp_path / "sets", seed=0)
    outcomes = [
        random_merges.run(0, index, catalog, sets, tmp_path) for index in range(part * PER_RUN, (part + 1) * PER_RUN)
    ]
    n_split = outcomes.count(random_merges.MERGED_IN_PARTS)
    assert n_split >= PER_RUN // 8
    assert n_split + outcomes.count(random_merges.MERGED) >= PER_RUN // 5
    assert len(set(outcomes)) > 1
