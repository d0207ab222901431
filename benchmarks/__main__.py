"""Runs every benchmark of speed, memory and faults, at a small size unless asked for the full one; prints one table.

`python -m benchmarks [--full] [--only NAME …] [--data FOLDER]`. Small, this project alone is measured: no other tool is
installed.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.telling import describe_machine, today

Runs = Sequence[tuple[str, Sequence[str]]]  # module below `benchmarks` (or `tests`), options

SMALL_CLIP = ("average", "ties, per*", "della", "karcher", "model_stock, by row", "sce*", "emr*", "tall_mask")
SMALL: Runs = (
    ("engine", ("--data", "{data}", "--rounds", "1", "--peers")),
    ("engine", ("--data", "{data}", "--rounds", "1", "--peers", "--cold", "--rows", "average", "task_arithmetic")),
    ("clip", ("--data", "{data}", "--rounds", "1", "--peers", "--rows", *SMALL_CLIP)),
    ("memory", ("--methods", "cabs", "tsv_m")),
    ("spectral", ("--tasks", "4", "--without-peers")),
    ("scaling", ("--data", "{data}", "--shapes", "tiny", "0.1b", "--fit", "tiny", "0.1b")),
    ("importing", ("{data}/0.1b/model-1",)),
    ("service.latency", ("--jobs", "20")),
    ("service.throughput", ("--jobs", "100", "--workers", "1", "4", "16")),
    ("service.parts", ("--data", "{data}/0.1b", "--n", "1", "--parts", "2", "--shard-bytes", "80000000")),
    ("service.traffic", ("--megabytes", "24",)),
    ("service.points", ("--every", "60")),
    ("service.chaos", ("--jobs", "9")),
    ("tests.workers.random_merges", ("--n", "200")),
)  # fmt: skip
FULL: Runs = (
    ("engine", ("--data", "{data}", "--shape", "1.1b")),
    ("engine", ("--data", "{data}", "--shape", "1.1b", "--peers", "--cold")),
    ("clip", ("--data", "{data}", "--peer-rounds", "1")),
    ("memory", ()),
    ("spectral", ("--rounds", "3")),
    ("scaling", ("--data", "{data}")),
    ("importing", ("{data}/1.1b/model-1",)),
    ("sweeps", ()),
    ("service.latency", ()),
    ("service.latency", ("--servers",)),
    ("service.throughput", ()),
    ("service.throughput", ("--servers",)),
    ("service.parts", ("--data", "{data}/1.1b")),
    ("service.traffic", ()),
    ("service.points", ()),
    ("service.points", ("--bucket", "--every", "5")),
    ("service.chaos", ()),
    ("service.chaos", ("--servers",)),
    ("tests.workers.random_merges", ("--n", "10000")),
)
NOISE = re.compile(  # lines that are no results: rules of tables, progress, logs, the machine
    r"\|---|generating |installing |.* done, load |\S+ \S+, \d+: [\d.]+ s$|[\d-]+ [\d:]+ \[|(on|[\d-]+,) \d+ cores"
)


def main() -> int:
    """Run one after the other, then print what all of them found; fail if one did."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="hours, about 60 GB of disk, and the other tools")
    parser.add_argument("--only", nargs="+", help="names, as the table has them, of those that are run")
    parser.add_argument("--data", type=Path, help="folder that keeps the generated models; default: a temporary one")
    arguments = parser.parse_args()
    rows = [f"| machine | {today()}, {describe_machine()} |"]
    failed = 0
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="amalgam-bench-") as folder:
        for name, options in FULL if arguments.full else SMALL:
            if arguments.only and name not in arguments.only:
                continue
            data = str(arguments.data or folder)
            began_at = time.monotonic()
            found = _run(name, [option.format(data=data) for option in options])
            failed += found is None
            results = found or ["failed"]
            rows += [f"| {name} | {line.strip('| ').replace(' | ', ' / ')} |" for line in results]
            rows.append(f"| {name} | took {time.monotonic() - began_at:.0f} s, load {os.getloadavg()[0]:.1f} |")
            print(rows[-1], flush=True)
    rows.append(f"| all | took {time.monotonic() - started_at:.0f} s, {failed} failed |")
    print("\n| benchmark | found |\n|---|---|")
    print("\n".join(rows))
    return 1 if failed else 0


def _run(name: str, options: Sequence[str]) -> list[str] | None:
    """Return the lines of results; None where it fails, which says why on the way."""
    module = name if name.startswith("tests.") else f"benchmarks.{name}"
    done = subprocess.run([sys.executable, "-m", module, *options], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout)
        return None
    return [line for line in done.stdout.splitlines() if line.strip() and not NOISE.match(line)]


if __name__ == "__main__":
    sys.exit(main())
