"""Alembic's entry: runs the migrations on the connection that app/db/migrate.py holds, inside its transaction."""

from alembic import context
from sqlalchemy import Connection, Engine

from app.db.tables import Table


def run(connection: Connection) -> None:
    """Run what was asked for. Batch mode: SQLite changes constraints by rebuilding the table."""
    context.configure(
        connection=connection,
        target_metadata=Table.metadata,
        render_as_batch=True,
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


database = context.config.attributes.get("connection")
if isinstance(database, Engine):
    with database.connect() as opened, opened.begin():
        run(opened)
elif isinstance(database, Connection):
    run(database)
else:
    message = "Migrations need a connection: run `amalgam migrate`, or app.db.migrate.upgrade(url)."
    raise TypeError(message)
