"""`house`: a whole service on SQLite. `world`: jobs alone, over each database in turn.

The databases of `world` are made once and emptied for each test.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.app.api.house import House, open_house
from tests.app.services.job_world import JobWorld, emptied, made
from tests.servers import fresh_database


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A service on SQLite."""
    with open_house(tmp_path / "house") as opened:
        yield opened


@pytest.fixture(scope="session")
def sqlite_jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder: Path = tmp_path_factory.mktemp("jobs")
    with made(f"sqlite:///{folder / 'jobs.db'}") as engine:
        yield engine


@pytest.fixture(scope="session")
def postgresql_jobs(postgresql_server: str) -> Iterator[Engine]:
    with fresh_database(postgresql_server) as url, made(url) as engine:
        yield engine


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest) -> JobWorld:
    return emptied(request.getfixturevalue(f"{request.param}_jobs"))
