"""One running service for all tests of the command line."""

from collections.abc import Iterator

import pytest

from tests.embedded import Serve, serving


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """`amalgam serve`, ready; file: URIs may lie in the folder that holds its home."""
    with serving(tmp_path_factory.mktemp("service") / "home") as serve:
        yield serve
