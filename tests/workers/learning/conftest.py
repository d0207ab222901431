"""One world for all tests here; they change nothing in it."""

import pytest

from tests.workers.learning.world import World, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two models near a base, a task for each."""
    return make_world(tmp_path_factory.mktemp("world"))
