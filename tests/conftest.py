"""Fixtures that give every test real servers and fresh data.

`postgresql_url`, `sqlite_url`, `database_url` (both in turn): an empty database for one test. `migrated_url` (both in
turn): one with the tables. `redis_url`: a flushed Valkey. `s3_bucket`: an empty bucket.
`proxy`: before it, what counts requests and may hang up.

AMALGAM_TEST_POSTGRESQL_URL, AMALGAM_TEST_REDIS_URL and AMALGAM_TEST_S3_ENDPOINT point the tests at servers that already
run. Under xdist each worker process starts its own servers, when a test first asks.

Property tests draw the same examples in every run, so that a red run is red again. AMALGAM_TEST_RANDOM=1 draws others
(`make test-random`).
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import settings

from app.db import migrate
from tests import servers
from tests.s3_proxy import S3Proxy, run_proxy

# Before any test module imports torch or transformers: two test processes share two cores, and nothing is downloaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Before any test module names settings of its own, which start from the profile that is loaded.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("random", derandomize=False, deadline=None)
settings.load_profile("random" if os.environ.get("AMALGAM_TEST_RANDOM") else "repeatable")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the developer's own AMALGAM_* settings out of the tests."""
    for name in list(os.environ):
        if name.startswith("AMALGAM_") and not name.startswith("AMALGAM_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a PostgreSQL server on which databases may be created."""
    if url := os.environ.get("AMALGAM_TEST_POSTGRESQL_URL"):
        yield url
        return
    with servers.run_postgresql() as url:
        yield url


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The URL of a Redis or Valkey whose database may be flushed."""
    if url := os.environ.get("AMALGAM_TEST_REDIS_URL"):
        yield url
        return
    with servers.run_valkey() as url:
        yield url


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of an S3 endpoint on which buckets may be created."""
    if url := os.environ.get("AMALGAM_TEST_S3_ENDPOINT"):
        yield url
        return
    with servers.run_s3() as url:
        yield url


@pytest.fixture
def postgresql_url(postgresql_server: str) -> Iterator[str]:
    """An empty PostgreSQL database of this test's own."""
    with servers.fresh_database(postgresql_server) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite database file of this test's own; not made yet."""
    return f"sqlite:///{tmp_path / 'amalgam.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database of this test's own, on SQLite and on PostgreSQL in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(scope="session")
def migrated_sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the tables, to copy."""
    path = tmp_path_factory.mktemp("template") / "amalgam.db"
    migrate.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgresql_template(postgresql_server: str) -> Iterator[str]:
    """The name of a PostgreSQL database with the tables, to copy."""
    with servers.fresh_database(postgresql_server) as url:
        migrate.upgrade(url)
        yield url.rpartition("/")[2]


@pytest.fixture
def migrated_sqlite_url(sqlite_url: str, migrated_sqlite_template: Path) -> str:
    """A SQLite database of this test's own, with the tables."""
    shutil.copyfile(migrated_sqlite_template, sqlite_url.removeprefix("sqlite:///"))
    return sqlite_url


@pytest.fixture
def migrated_postgresql_url(postgresql_server: str, migrated_postgresql_template: str) -> Iterator[str]:
    """A PostgreSQL database of this test's own, with the tables."""
    with servers.fresh_database(postgresql_server, template=migrated_postgresql_template) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def migrated_url(request: pytest.FixtureRequest) -> str:
    """A database of this test's own with the tables, on SQLite and on PostgreSQL in turn."""
    url: str = request.getfixturevalue(f"migrated_{request.param}_url")
    return url


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """A Valkey (Redis) database without keys."""
    with redis.Redis.from_url(redis_server) as client:
        client.flushdb()
    return redis_server


@pytest.fixture
def s3_bucket(s3_server: str) -> Iterator[servers.S3Bucket]:
    """An empty bucket of this test's own."""
    with servers.fresh_bucket(s3_server) as bucket:
        yield bucket


@pytest.fixture
def proxy(s3_bucket: servers.S3Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    """A proxy before the bucket, to which the usual AWS variables lead."""
    with run_proxy(s3_bucket.endpoint_url) as proxy:
        for name, value in {**s3_bucket.environment, "AWS_ENDPOINT_URL": proxy.url}.items():
            monkeypatch.setenv(name, value)
        yield proxy
