"""The migrations: up, down, no drift from the tables, several at once; on SQLite and PostgreSQL."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from pytest_alembic.config import Config as PytestAlembicConfig
from pytest_alembic.tests import (
    test_model_definitions_match_ddl,
    test_single_head_revision,
    test_up_down_consistency,
    test_upgrade,
)
from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import IntegrityError

from app.db import migrate
from app.db.engine import make_engine
from app.db.tables import Table

__all__ = [
    "test_model_definitions_match_ddl",
    "test_single_head_revision",
    "test_up_down_consistency",
    "test_upgrade",
]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def alembic_engine(engine: Engine) -> Engine:
    return engine


@pytest.fixture
def alembic_config() -> PytestAlembicConfig:
    return PytestAlembicConfig(alembic_config=migrate.make_config())


def test_upgrade_makes_every_table_and_the_default_project(engine: Engine) -> None:
    migrate.upgrade(engine)

    names = set(inspect(engine).get_table_names())
    with engine.connect() as connection:
        projects = connection.execute(text("SELECT id FROM projects")).scalars().all()
    assert set(Table.metadata.tables) <= names
    assert projects == ["default"]


def test_upgrade_by_url_makes_the_folder_of_a_sqlite_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'folder' / 'amalgam.db'}"

    migrate.upgrade(url)

    engine = make_engine(url)
    assert migrate.is_at_head(engine)
    engine.dispose()


def test_is_at_head_tells_an_empty_database_from_a_migrated_one(engine: Engine) -> None:
    assert not migrate.is_at_head(engine)
    migrate.upgrade(engine)
    assert migrate.is_at_head(engine)


def test_upgrade_twice_changes_nothing(engine: Engine) -> None:
    migrate.upgrade(engine)
    migrate.upgrade(engine)
    assert migrate.is_at_head(engine)


def test_downgrade_to_base_leaves_no_table_of_ours(engine: Engine) -> None:
    migrate.upgrade(engine)
    migrate.downgrade(engine, "base")
    assert not set(inspect(engine).get_table_names()) & set(Table.metadata.tables)


def test_alembic_check_finds_no_drift(engine: Engine) -> None:
    migrate.upgrade(engine)
    config = migrate.make_config()
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.check(config)


def test_upgrades_at_once_do_not_disturb_each_other(database_url: str) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            migrate.upgrade(database_url)
        except BaseException as error:  # noqa: BLE001 (collected for the assertion)
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []


def test_foreign_keys_are_on_again_after_a_migration_on_sqlite(sqlite_url: str) -> None:
    engine = make_engine(sqlite_url)
    migrate.upgrade(engine)
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
    engine.dispose()


def test_a_migration_that_leaves_dangling_rows_is_rolled_back(sqlite_url: str) -> None:
    engine = make_engine(sqlite_url)
    migrate.upgrade(engine)

    dangling = text("INSERT INTO models VALUES ('nobody', 'm', 0, '2026-01-01')")
    with (
        pytest.raises(migrate.SchemaBroken, match="1 rows pointing nowhere, in models"),
        migrate._migrating(engine) as config,
    ):
        config.attributes["connection"].execute(dangling)

    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM models")).scalar() == 0
    engine.dispose()


def test_jobs_and_their_log_survive_the_kind_of_parts(engine: Engine) -> None:
    migrate.upgrade(engine, "0002")
    with engine.begin() as connection:
        _add_job(connection, "job_1", "merge")
        connection.execute(
            text(
                "INSERT INTO events (job_id, seq, project_id, type, at, data)"
                " VALUES ('job_1', 1, 'default', 'x', '2026-01-01', '{}')"
            )
        )
    migrate.upgrade(engine)
    with engine.begin() as connection:
        _add_job(connection, "job_2", "part", parent="job_1")
        assert connection.execute(text("SELECT count(*) FROM events")).scalar() == 1
    for kind, state in (("nonsense", "queued"), ("part", "nonsense")):
        with pytest.raises(IntegrityError), engine.begin() as connection:
            _add_job(connection, "job_3", kind, state=state)
    names = {index["name"] for index in inspect(engine).get_indexes("jobs")}
    assert names == {index.name for index in Table.metadata.tables["jobs"].indexes}
    migrate.downgrade(engine, "0002")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT id FROM jobs")).scalars().all() == ["job_1"]


def test_a_worker_of_the_release_before_has_one_core_of_an_unknown_machine(engine: Engine) -> None:
    migrate.upgrade(engine)
    add = text(
        "INSERT INTO workers (id, name, queues, device, concurrency, version, state, load, started_at, seen_at)"
        " VALUES ('wrk_1', 'w', '[]', 'cpu', 2, '0', 'active', '{}', '2026-01-01', '2026-01-01')"
    )
    with engine.begin() as connection:
        connection.execute(add)
        found = connection.execute(text("SELECT machine, cores, threads FROM workers")).one()
    assert tuple(found) == ("", 1, 0)
    migrate.downgrade(engine, "0003")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT id FROM workers")).scalars().all() == ["wrk_1"]


def _add_job(
    connection: Connection, job_id: str, kind: str, *, state: str = "queued", parent: str | None = None
) -> None:
    statement = text(
        "INSERT INTO jobs (id, kind, state, resource_class, priority, spec, tags, max_attempts, attempts,"
        " timeout_seconds, parent_id, n_remaining_children, fence, stages, last_seq, queued_at, project_id, actor,"
        " created_at, updated_at) VALUES (:id, :kind, :state, 'cpu', 0, '{}', '{}', 1, 0, 60, :parent, 0, 0, '[]', 0,"
        " '2026-01-01', 'default', 'a', '2026-01-01', '2026-01-01')"
    )
    connection.execute(statement, {"id": job_id, "kind": kind, "state": state, "parent": parent})
