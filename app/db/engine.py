"""The database engine and its two kinds of transaction, for SQLite (WAL) and PostgreSQL.

Every transaction that may write begins IMMEDIATE on SQLite: a deferred one that upgrades to a write fails at once with
"database is locked", and pysqlite's own transactions lose updates silently.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from app.domain.errors import Unavailable

SQLITE_BUSY_SECONDS = 30.0
SQLITE_PRAGMAS = (
    f"busy_timeout={SQLITE_BUSY_SECONDS * 1000:.0f}",  # milliseconds
    "synchronous=NORMAL",
    "foreign_keys=ON",
    "journal_size_limit=67108864",  # bytes
)
UNDEFINED = ("42P01", "42703")  # PostgreSQL's states for a table or a column that is not there
POSTGRESQL_OPTIONS = "-c lock_timeout=10s -c statement_timeout=60s -c idle_in_transaction_session_timeout=60s"


def make_engine(url: str, *, pool_size: int = 20) -> Engine:
    """Return an engine for `sqlite:///path` or `postgresql://…` (psycopg 3)."""
    if make_url(url).get_backend_name() == "sqlite":
        engine = create_engine(url, pool_size=pool_size, max_overflow=20)
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return create_engine(
        url,
        pool_size=pool_size,
        max_overflow=20,
        pool_pre_ping=True,
        connect_args={"options": POSTGRESQL_OPTIONS, "connect_timeout": 5},
    )


class Sessions:
    """Opens short transactions; `begin()` to write, `read()` to look."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writing = sessionmaker(engine.execution_options(sqlite_begin="IMMEDIATE"))
        self._reading = sessionmaker(engine)

    @contextlib.contextmanager
    def begin(self) -> Iterator[Session]:
        """Yield a session whose changes are committed at the end, or rolled back when an exception leaves the block.

        Raises: Unavailable when the database cannot be reached or stays locked.
        """
        with _translated(), self._writing() as session, session.begin():
            yield session

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """Yield a session for reading; whatever it changes is rolled back.

        Raises: Unavailable when the database cannot be reached.
        """
        with _translated(), self._reading() as session:
            yield session


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        detail = "The database cannot be used at the moment; try again shortly. The service's log says why."
        raise Unavailable(detail) from error
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) not in UNDEFINED:
            raise
        raise Unavailable("The database has not the schema of this release. Run `amalgam migrate`.") from error


def _set_up_sqlite(connection: Any, _record: object) -> None:  # Any: a DBAPI connection
    connection.isolation_level = None  # the driver begins nothing by itself; _begin_sqlite does
    cursor = connection.cursor()
    for pragma in SQLITE_PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    _write_ahead(cursor)
    cursor.close()


def _write_ahead(cursor: Any) -> None:  # Any: a DBAPI cursor
    """Put the database into WAL mode. SQLite does not wait where others are doing the same to a new file; this does."""
    give_up_at = time.monotonic() + SQLITE_BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
            time.sleep(0.01)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {mode}")
