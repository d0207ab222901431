"""Tells whether the worker in this container lives: exit status 0 if it renewed its row lately, else 1."""

import socket
import sys

from app.config import load_settings
from app.db.engine import Sessions, make_engine
from app.services import operations


def main() -> int:
    """Look for a living worker of this host in the database."""
    engine = make_engine(load_settings().database_url)
    try:
        workers = operations.find_workers(Sessions(engine))
    finally:
        engine.dispose()
    mine = {worker.name: worker.state for worker in workers if worker.name.startswith(f"{socket.gethostname()}-")}
    sys.stdout.write(f"workers of this host: {mine or 'none'}\n")
    return 0 if {"active", "draining"} & set(mine.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
