"""Runs every benchmark of speed and memory, at a small size unless asked for the full one, and prints one table.

`python -m benchmarks [--full] [--data FOLDER]`. Small, this project alone is measured: no other tool is installed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SMALL: Mapping[str, Sequence[str]] = {
    "engine": ("--without-mergekit", "--rounds", "1", "--data", "{data}"),
    "memory": ("--methods", "cabs", "iso_c", "tsv_m", "tsv_c"),
    "service.latency": ("--jobs", "20"),
    "service.throughput": ("--jobs", "100", "--workers", "1", "4"),
}
FULL: Mapping[str, Sequence[str]] = {
    "engine": ("--shape", "1.1b", "--data", "{data}"),
    "clip": ("--data", "{data}"),
    "memory": (),
    "spectral": (),
    "scaling": ("--data", "{data}"),
    "service.latency": (),
    "service.throughput": (),
    "service.chaos": (),
}
NOISE = ("|---", "generating", "round ", "installing")  # lines that are no results begin so


def main() -> int:
    """Run one after the other, then print what all of them found; fail if one did."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="hours, about 60 GB of disk, and the other tools")
    parser.add_argument("--data", type=Path, help="folder that keeps the generated models; default: a temporary one")
    arguments = parser.parse_args()
    rows: list[str] = []
    failed = 0
    with tempfile.TemporaryDirectory(prefix="amalgam-bench-") as folder:
        for name, options in (FULL if arguments.full else SMALL).items():
            data = str(arguments.data or folder)
            began_at = time.monotonic()
            found = _run(name, [option.format(data=data) for option in options])
            failed += found is None
            results = found or ["failed"]
            rows += [f"| {name} | {line.strip('| ').replace(' | ', ' / ')} |" for line in results]
            rows.append(f"| {name} | took {time.monotonic() - began_at:.0f} s, load {os.getloadavg()[0]:.1f} |")
            print(rows[-1], flush=True)
    print("\n| benchmark | found |\n|---|---|")
    print("\n".join(rows))
    return 1 if failed else 0


def _run(name: str, options: Sequence[str]) -> list[str] | None:
    """Return the lines of results; None where it fails, which says why on the way."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout)
        return None
    return [line for line in done.stdout.splitlines() if line.strip() and not line.startswith(NOISE)]


if __name__ == "__main__":
    sys.exit(main())
