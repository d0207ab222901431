"""Transactions: what is committed, what is rolled back, who waits for whom; on SQLite and PostgreSQL."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, text, update
from sqlalchemy.orm import Session

from app.db import clock
from app.db.engine import Sessions, make_engine
from app.db.tables import Model, Project, Table, UtcDateTime, utc_now
from app.domain.errors import Unavailable
from tests import servers


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    Table.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def sessions(engine: Engine) -> Sessions:
    made = Sessions(engine)
    with made.begin() as session:
        session.add(Project(id="default"))
        session.flush()
        session.add(Model(project_id="default", name="m"))
    return made


def read_version(sessions: Sessions) -> int:
    with sessions.read() as session:
        return session.scalars(select(Model.last_version)).one()


def test_a_block_that_ends_well_is_committed(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.execute(update(Model).values(last_version=5))
    assert read_version(sessions) == 5


def test_a_block_that_an_exception_leaves_is_rolled_back(sessions: Sessions) -> None:
    with pytest.raises(ZeroDivisionError), sessions.begin() as session:
        session.execute(update(Model).values(last_version=5))
        raise ZeroDivisionError
    assert read_version(sessions) == 0


def test_what_a_read_changes_is_rolled_back(sessions: Sessions) -> None:
    with sessions.read() as session:
        session.execute(update(Model).values(last_version=5))
    assert read_version(sessions) == 0


def test_writers_that_read_first_lose_no_update(sessions: Sessions) -> None:
    def add() -> None:
        for _ in range(10):
            with sessions.begin() as session:
                row = session.scalars(select(Model).with_for_update()).one()
                row.last_version += 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_version(sessions) == 40


def test_readers_do_not_wait_for_a_writer(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.execute(update(Model).values(last_version=5))
        assert read_version(sessions) == 0


def test_foreign_keys_are_enforced(sessions: Sessions) -> None:
    with pytest.raises(Exception, match=r"(?i)foreign key"), sessions.begin() as session:
        session.add(Model(project_id="nobody", name="m"))


def test_instants_come_back_aware_and_in_utc(sessions: Sessions) -> None:
    at = utc_now()
    with sessions.begin() as session:
        session.execute(update(Model).values(created_at=at))
    with sessions.read() as session:
        assert session.scalars(select(Model.created_at)).one() == at


def test_a_naive_instant_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="naive"):
        UtcDateTime().process_bind_param(utc_now().replace(tzinfo=None), engine.dialect)


def test_the_clock_is_near_ours_and_moves_within_a_transaction(sessions: Sessions) -> None:
    with sessions.begin() as session:
        first, second = clock.now(session), clock.now(session)
    assert first.tzinfo is not None
    assert first < second or first == second
    assert abs((first - utc_now()).total_seconds()) < 60


def test_sqlite_is_set_up_for_several_processes(sqlite_url: str) -> None:
    engine = make_engine(sqlite_url)
    with engine.connect() as connection:
        found = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    engine.dispose()
    assert found == {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1, "busy_timeout": 30000}


@pytest.mark.parametrize("begin", [True, False])
def test_a_database_that_is_away_is_unavailable(begin: bool) -> None:  # noqa: FBT001 (a parameter of the test)
    engine = make_engine(f"postgresql://nobody@127.0.0.1:{servers.free_port()}/none")
    sessions = Sessions(engine)
    opened = sessions.begin() if begin else sessions.read()
    with pytest.raises(Unavailable, match="try again shortly"), opened as session:
        _touch(session)


def test_a_new_sqlite_file_is_opened_by_many_at_once(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def connect(engine: Engine) -> None:
        try:
            engine.connect().close()
        except Exception as error:  # noqa: BLE001 (collected for the assertion)
            errors.append(error)

    for place in range(20):
        engines = [make_engine(f"sqlite:///{tmp_path}/{place}.db") for _ in range(8)]
        threads = [threading.Thread(target=connect, args=(engine,)) for engine in engines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for engine in engines:
            engine.dispose()

    assert errors == []


def test_a_sqlite_file_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    sessions = Sessions(make_engine(f"sqlite:///{tmp_path / 'missing' / 'x.db'}"))
    with pytest.raises(Unavailable) as refused, sessions.read() as session:
        _touch(session)
    assert str(tmp_path) not in refused.value.detail


def _touch(session: Session) -> None:
    session.execute(text("SELECT 1"))
