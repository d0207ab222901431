"""What memory there is, and whether the kernel killed somebody for lack of it: a counter to compare before and after.

Our control group's own counter where it can be read (version 2, then version 1), else the machine's.
"""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
MACHINE = Path("/proc/vmstat")


def out_of_memory_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory; 0 where that cannot be seen."""
    for path in _counters():
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def free_bytes() -> int:
    """Return how much memory this process may still take, by its own limit, its control group and the machine."""
    found = [psutil.virtual_memory().available]
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit != resource.RLIM_INFINITY:
        found.append(limit - psutil.Process().memory_info().rss)
    with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
        group = [int((CGROUPS / name).read_text()) for name in ("memory.max", "memory.current")]
        found.append(group[0] - group[1])
    return max(0, min(found))


def _counters() -> Iterator[Path]:
    yield CGROUPS / "memory.events"  # as seen from inside a container
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            yield CGROUPS / group.lstrip("/") / "memory.events"
        elif controllers == "memory":
            yield CGROUPS / "memory" / group.lstrip("/") / "memory.oom_control"
    yield MACHINE
