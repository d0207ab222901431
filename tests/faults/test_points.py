"""A merge in parts whose worker is killed at numbered points: it ends, its bytes are right, nothing is left behind.

A few points of each kind of store; `python -m benchmarks.service.points` visits all of them.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.killing import Ground, open_ground
from tests.servers import S3Bucket

pytestmark = pytest.mark.slow
N_VISITED = 3


@pytest.fixture(params=["files", "bucket"])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    with ExitStack() as stack:
        bucket: S3Bucket | None = request.getfixturevalue("s3_bucket") if request.param == "bucket" else None
        yield stack.enter_context(open_ground(tmp_path / "ground", bucket))


def test_a_kill_at_any_point_costs_no_more_than_the_attempt(ground: Ground) -> None:
    names = ground.count_points()
    step = len(names) // N_VISITED
    for number in range(step // 2, len(names), step):
        ground.kill_at(number + 1)
    kinds = {name.removeprefix("before ").removeprefix("after ") for name in names}
    assert {"pwritev", "fsync", "before_commit", "after_commit", "claim", "finish"} <= kinds
    assert {"put", "copy", "within a put"} <= kinds if ground.bucket else {"link", "rename"} <= kinds
