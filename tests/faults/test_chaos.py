"""A small storm: kills, lost and doubled messages; at the end every law holds. benchmarks/service has the large one."""

from pathlib import Path

import pytest

from benchmarks.service.chaos import Weather, run_chaos

STORM = Weather(n_jobs=9, n_elements=400_000, kill_every_seconds=1.5, seed=3, split_every=4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["files and SQLite", "Valkey and PostgreSQL"])
def test_every_job_has_exactly_one_result_with_the_bytes_of_a_quiet_run(
    tmp_path: Path, request: pytest.FixtureRequest, backend: str
) -> None:
    environment = {}
    if backend == "Valkey and PostgreSQL":
        environment["AMALGAM_BROKER_URL"] = request.getfixturevalue("redis_url")
        environment["AMALGAM_DATABASE_URL"] = request.getfixturevalue("postgresql_url")

    report = run_chaos(tmp_path, environment, STORM)

    assert report.faults == ()
    assert report.damage.n_doubled > 0
    assert report.damage.n_dropped > 0
