"""A database with jobs (`world`, on SQLite and on PostgreSQL), and a whole service (`house`), of each test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.api.house import House, open_house
from tests.app.api.house import House, open_house
from tests.app.services.job_world import JobWorld, job_world


@pytest.fixture
def world(database_url: str) -> Iterator[JobWorld]:
    """A migrated database with a silent queue, on SQLite, then on PostgreSQL."""
    with job_world(database_url) as made:
        yield made


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A service on SQLite."""
    with open_house(tmp_path / "house") as opened:
        yield opened


@pytest.fixture
def any_house(tmp_path: Path, database_url: str) -> Iterator[House]:
    """A service on SQLite, then on PostgreSQL."""
    with open_house(tmp_path / "house", database_url) as opened:
        yield opened
