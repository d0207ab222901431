"""A service of each test's own: `house` on SQLite, `any_house` on SQLite and on PostgreSQL in turn."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.api.house import House, open_house


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
