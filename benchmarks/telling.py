"""How benchmarks tell what they measured: on which machine, when, with which versions; medians and their spread."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

LIBRARIES = ("torch", "numba", "numpy", "safetensors")


def today() -> str:
    """Return the date, in UTC."""
    return datetime.now(UTC).date().isoformat()


def spread(values: Sequence[float]) -> str:
    """Return the median, and behind it the least and the most where there are several."""
    middle = f"{median(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f}–{max(values):.2f})"


def judge(value: float, goal: float | None, *, at_most: bool = False, digits: int = 1) -> str:
    """Return a number with its goal, and whether that is missed."""
    if goal is None:
        return f"{value:.{digits}f}"
    is_missed = value > goal if at_most else value < goal
    return f"{value:.{digits}f} ({'≤' if at_most else '≥'} {goal:g}){' **missed**' if is_missed else ''}"


def write_between(page: Path, name: str, text: str) -> None:
    """Put a text into a page, in place of what stands between `<!-- name -->` and the next `<!-- end -->`.

    Raises: ValueError where the page has no such marks.
    """
    content = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->\n", "<!-- end -->"
    before, found, rest = content.partition(begin)
    _, is_closed, after = rest.partition(end)
    if not found or not is_closed:
        raise ValueError(f"{page} has no {begin.strip()} with an {end} behind it; put them where the tables belong.")
    page.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


def describe_machine(*others: str) -> str:
    """Return one line: processor, memory, system, versions.

    others: what else took part, with its version, as pip names it.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    parts = [
        f"{len(os.sched_getaffinity(0))} cores ({_processor()})",
        f"{memory:.0f} GB",
        f"{platform.system()} {platform.release()}",
        f"Python {platform.python_version()}",
        *(f"{name} {version(name)}" for name in LIBRARIES),
        *(one.replace("==", " ") for one in others),
    ]
    return ", ".join(parts)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
