"""Who a worker is: a name that it keeps over its restarts, and the machine whose cores it works with.

A name is held by a file lock, so two living workers never share one.
"""

import contextlib
import fcntl
import hashlib
import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # one for all containers of a machine
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # "200000 100000": of two cores; "max 100000": of all


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


def find_machine(name: str, *, boot_id: Path = BOOT_ID, cpu_max: Path = CPU_MAX) -> tuple[str, int]:
    """Return what names the machine that this process shares with others, and how many of its cores it may use.

    A process that is held to some of them (taskset, a container's limit) is a machine of its own, called by its name.
    """
    cores = min(len(os.sched_getaffinity(0)), _read_limit(cpu_max))
    if cores < (os.cpu_count() or 1):
        return name, cores
    try:
        return boot_id.read_text(encoding="ascii").strip(), cores
    except OSError:
        return socket.gethostname(), cores


def _read_limit(cpu_max: Path) -> int:
    """Return how many cores a container may use, at least one; as many as there are where nothing limits it."""
    try:
        quota, period = cpu_max.read_text(encoding="ascii").split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return os.cpu_count() or 1


def _lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
