"""Laws of the test servers: real, fresh for each test, gone with the session."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from sqlalchemy import create_engine, inspect, text

from tests import servers
from tests.waiting import wait_until


def test_postgresql_is_a_real_server(postgresql_url: str) -> None:
    with psycopg.connect(postgresql_url) as connection:
        version = connection.execute("SHOW server_version_num").fetchone()

    assert version is not None
    assert int(version[0]) >= 150000


@pytest.mark.parametrize("_turn", ["first", "second"])
def test_each_test_gets_an_empty_postgresql_database(postgresql_url: str, _turn: str) -> None:
    with psycopg.connect(postgresql_url) as connection:
        connection.execute("CREATE TABLE left_over (id integer)")  # fails if a test before left its own


def test_a_database_is_a_copy_of_its_template(postgresql_server: str, postgresql_url: str) -> None:
    with psycopg.connect(postgresql_url) as connection:
        connection.execute("CREATE TABLE jobs AS SELECT 7 AS id")

    template = postgresql_url.rsplit("/", 1)[1]
    with servers.fresh_database(postgresql_server, template=template) as copy, psycopg.connect(copy) as connection:
        assert connection.execute("SELECT id FROM jobs").fetchone() == (7,)


def test_a_database_is_dropped_even_while_somebody_is_connected(postgresql_server: str) -> None:
    with servers.fresh_database(postgresql_server) as url:
        connection = psycopg.connect(url)

    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    connection.close()


def test_a_database_url_works_with_sqlalchemy(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
    engine.dispose()


@pytest.mark.parametrize("_turn", ["first", "second"])
def test_each_test_gets_its_own_tables(migrated_url: str, _turn: str) -> None:
    engine = create_engine(migrated_url)
    with engine.begin() as connection:
        assert "jobs" in inspect(connection).get_table_names()
        connection.execute(text("CREATE TABLE left_over (id integer)"))  # fails if a test before left its own
    engine.dispose()


@pytest.mark.parametrize("_turn", ["first", "second"])
def test_each_test_gets_a_redis_without_keys(redis_url: str, _turn: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left_over", "1")


def test_redis_keeps_the_commands_that_a_broker_needs(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.eval("return redis.call('LPUSH', KEYS[1], ARGV[1])", 1, "queue", "message") == 1
        assert client.info("server")["redis_version"] >= "7"


def test_s3_refuses_to_overwrite_under_if_none_match(s3_bucket: servers.S3Bucket) -> None:
    client = s3_bucket.client()
    client.put_object(Bucket=s3_bucket.name, Key="weights", Body=b"first", IfNoneMatch="*")

    with pytest.raises(client.exceptions.ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=s3_bucket.name, Key="weights", Body=b"second", IfNoneMatch="*")
    assert client.get_object(Bucket=s3_bucket.name, Key="weights")["Body"].read() == b"first"
    client.close()


def test_an_s3_bucket_tells_its_environment(s3_bucket: servers.S3Bucket) -> None:
    assert s3_bucket.url == f"s3://{s3_bucket.name}"
    assert s3_bucket.environment["AWS_ENDPOINT_URL"] == s3_bucket.endpoint_url
    assert 3 <= len(s3_bucket.name) <= 63


@pytest.mark.parametrize("run", [servers.run_postgresql, servers.run_valkey, servers.run_s3])
def test_a_server_ends_with_its_block(run: Callable[[], AbstractContextManager[str]]) -> None:
    before = set(psutil.Process().children(recursive=True))
    with run():
        during = set(psutil.Process().children(recursive=True)) - before
        assert during
    assert not [process for process in during if process.is_running()]


def test_servers_end_when_the_test_process_is_killed() -> None:
    script = """
import time
from tests import servers
with servers.run_valkey() as url:
    print(url, flush=True)
    time.sleep(60)
"""
    tests = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert tests.stdout is not None
    url = tests.stdout.readline().strip()

    os.kill(tests.pid, signal.SIGKILL)
    tests.wait()
    tests.stdout.close()

    wait_until(lambda: not servers._redis_answers(url), reason="the end of the server")


def test_a_server_that_cannot_start_says_what_it_wrote(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "raise SystemExit('no such setting')")
    server = servers.Server(command=command, url="{port}", answers=lambda _url: False, folder=tmp_path)

    with pytest.raises(RuntimeError, match=r"did not start in 3 attempts; it wrote:\nno such setting"), server.run():
        pass


def test_settings_of_the_developer_do_not_reach_a_test() -> None:
    leaked = [name for name in os.environ if name.startswith("AMALGAM_") and not name.startswith("AMALGAM_TEST_")]

    assert leaked == []
