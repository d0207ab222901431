"""Brings a database to the schema of this release; safe when several processes start at once."""

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from app.db.engine import make_engine

ADVISORY_LOCK = 0x616D616C67616D  # "amalgam"


class SchemaBroken(Exception):
    """A migration would leave rows that point nowhere; it was rolled back. The message names tables and counts."""


def upgrade(database: Engine | str, revision: str = "head") -> None:
    """Run the migrations up to a revision; the folder of a SQLite file is made if need be."""
    with _opened(database) as engine, _migrating(engine) as config:
        command.upgrade(config, revision)


def downgrade(database: Engine | str, revision: str) -> None:
    """Undo migrations down to a revision (`base`: all)."""
    with _opened(database) as engine, _migrating(engine) as config:
        command.downgrade(config, revision)


def is_at_head(engine: Engine) -> bool:
    """Tell whether the database has the schema of this release."""
    head = ScriptDirectory.from_config(make_config()).get_current_head()
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision() == head


def make_config() -> Config:
    """Return Alembic's configuration; the migrations lie in the importable package `migrations`."""
    spec = find_spec("migrations")
    if spec is None or spec.origin is None:
        raise SchemaBroken("The package `migrations` is not installed; install the distribution `amalgam` again.")
    config = Config()
    config.set_main_option("script_location", str(Path(spec.origin).parent).replace("%", "%%"))
    return config


@contextlib.contextmanager
def _opened(database: Engine | str) -> Iterator[Engine]:
    if isinstance(database, Engine):
        yield database
        return
    engine = make_engine(database)
    try:
        yield engine
    finally:
        engine.dispose()


@contextlib.contextmanager
def _migrating(engine: Engine) -> Iterator[Config]:
    """Yield a configuration whose connection holds the lock and an open transaction, committed at the end."""
    config = make_config()
    if engine.dialect.name == "sqlite":
        _make_folder(engine)
        with _migrating_sqlite(engine) as connection:
            config.attributes["connection"] = connection
            yield config
    else:
        with _one_at_a_time(engine), engine.begin() as connection:
            config.attributes["connection"] = connection
            yield config


@contextlib.contextmanager
def _migrating_sqlite(engine: Engine) -> Iterator[Connection]:
    """Foreign keys are off meanwhile: with them, rebuilding a table deletes its children's rows."""
    with engine.execution_options(sqlite_begin="IMMEDIATE").connect() as connection:
        driver = connection.connection.cursor()  # outside of a transaction: within one the pragma does nothing
        driver.execute("PRAGMA foreign_keys=OFF")
        try:
            with connection.begin():
                yield connection
                _check_foreign_keys(connection)
        finally:
            driver.execute("PRAGMA foreign_keys=ON")
            driver.close()


def _check_foreign_keys(connection: Connection) -> None:
    dangling = connection.execute(text("PRAGMA foreign_key_check")).all()
    if dangling:
        tables = sorted({str(row[0]) for row in dangling})
        raise SchemaBroken(f"The migration would leave {len(dangling)} rows pointing nowhere, in {', '.join(tables)}.")


@contextlib.contextmanager
def _one_at_a_time(engine: Engine) -> Iterator[None]:
    """Hold PostgreSQL's advisory lock on a connection of its own, waiting for it as long as it takes."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET lock_timeout = 0"))
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
            connection.invalidate()  # its settings are its own


def _make_folder(engine: Engine) -> None:
    database = engine.url.database
    if database and database != ":memory:":
        Path(database).parent.mkdir(parents=True, exist_ok=True)
