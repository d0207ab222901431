"""A merge in parts whose worker is killed at every point: before and after each write, sync, rename, put and commit.

Run: `python -m benchmarks.service.points [--bucket] [--every 1] [--first 1]`; see README.md. Exits with 1 if something
is wrong after a kill: the merge has not ended, other bytes, or something left behind.
"""

import argparse
import contextlib
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests import servers
from tests.faults.killing import LeftBehind, open_ground


def main() -> None:
    """Visit the points, and print what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bucket", action="store_true", help="models and store in a bucket (moto) instead of folders")
    parser.add_argument("--every", type=int, default=1, help="visit every n-th point")
    parser.add_argument("--first", type=int, default=1, help="the first one visited")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        bucket = None
        if given.bucket:
            bucket = stack.enter_context(servers.fresh_bucket(stack.enter_context(servers.run_s3())))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="amalgam-points-"))
        ground = stack.enter_context(open_ground(Path(folder) / "ground", bucket))
        names = ground.count_points()
        print(f"{len(names)} points: {dict(Counter(names).most_common())}", flush=True)
        began_at, n_visited, faults = time.monotonic(), 0, 0
        for number in range(given.first, len(names) + 1, given.every):
            n_visited += 1
            try:
                ground.kill_at(number)
            except LeftBehind as fault:
                faults += 1
                print(f"{names[number - 1]}: {fault}", flush=True)
        print(f"{n_visited} points visited in {time.monotonic() - began_at:.0f} s, {faults} faults", flush=True)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
