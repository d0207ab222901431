"""A name that a worker keeps over its restarts: held by a file lock, so two living workers never share one."""

import contextlib
import fcntl
import hashlib
import itertools
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


class NameTaken(Exception):
    """Another worker of this installation runs under the name that was asked for."""


@contextlib.contextmanager
def take_name(folder: Path, wanted: str | None = None) -> Iterator[str]:
    """Hold a name for as long as the block runs: host, installation, and the wanted name or the first free number.

    Whoever gets a name knows that its former holder is dead. Raises: NameTaken when a wanted name is held.
    """
    folder.mkdir(parents=True, exist_ok=True)
    installation = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:6]
    for number in itertools.count(1):
        suffix = wanted or str(number)
        with (folder / f"{suffix}.lock").open("a", encoding="utf-8") as file:
            if _lock(file):
                yield f"{socket.gethostname()}-{installation}-{suffix}"
                return
        if wanted is not None:
            raise NameTaken(f"a worker named {wanted!r} runs already; give this one another name, or none.")


def _lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
