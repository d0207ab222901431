"""What merging the 8 points of a grid in memory takes, one per read of the inputs and several.

`python -m benchmarks.sweeps.merging FOLDER [--grids …] [--at-once 1 8] [-n 3]`: the folder holds models as
benchmarks/engine generates them. Each run is a process of its own; all numbers are the least of n.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.engine.floor import forget, read_once
from benchmarks.engine.processes import run
from benchmarks.sweeps.merge_grid import GRIDS
from benchmarks.telling import describe_machine, today


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps.merging", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--grids", nargs="+", choices=list(GRIDS), default=list(GRIDS))
    parser.add_argument("--at-once", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--cold", action="store_true", help="drop the inputs from the page cache before each run")
    parser.add_argument("-n", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{arguments.folder.name}, {today()}, {describe_machine()}\n")
    print("| grid | points per read | seconds | CPU seconds | read | memory |\n|---|---|---|---|---|---|")
    for grid in arguments.grids:
        for at_once in arguments.at_once:
            print(measure(arguments.folder, grid, at_once, n=arguments.n, is_cold=arguments.cold), flush=True)


def measure(folder: Path, grid: str, at_once: int, *, n: int, is_cold: bool) -> str:
    """Return a row of the table."""
    found: list[dict[str, float]] = []
    for _ in range(n):
        (forget if is_cold else read_once)(folder)
        done = run([sys.executable, "-m", "benchmarks.sweeps.merge_grid", folder, grid, str(at_once)])
        told = json.loads(done.last_line)
        found.append({**told, "held_bytes": done.anonymous_bytes - told["idle_bytes"]})
    least = {name: min(one[name] for one in found) for name in found[0]}
    took = f"{least['seconds']:.1f} | {least['cpu_seconds']:.1f}"
    return f"| {grid} | {at_once} | {took} | {least['read_bytes'] / 1e9:.2f} GB | {least['held_bytes'] / 1e6:.0f} MB |"


if __name__ == "__main__":
    main()
