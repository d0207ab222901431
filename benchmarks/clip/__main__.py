"""Measures every element-wise and threshold method on a CLIP-shaped set, against the other tools that have it.

What was measured is kept in results.json beside the models, so that rows can be measured in several runs, and our side
alone again; the table is always of all that is there.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.clip.peers import compare, run_peer
from benchmarks.clip.results import Results, Theirs
from benchmarks.clip.rows import ROWS, START_UP, Row
from benchmarks.engine.generate import generate
from benchmarks.engine.merge_once import import_all
from benchmarks.engine.processes import Run, read_once, run
from benchmarks.engine.shapes import SHAPES

N_MODELS = 8


def main() -> None:
    """Generate the models, merge, print the table."""
    arguments = _parse()
    models, small = _make_models(arguments.data, "clip"), _make_models(arguments.data, "clip-tiny")
    kept = arguments.data / "results.json"
    results = Results.read(kept)
    for row in ROWS:
        if not any(fnmatch(row.name, pattern) for pattern in arguments.rows):
            continue
        read_once(models)
        with _emptied(arguments.data / "ours") as ours:
            results.ours[row.name] = [_run_ours(row, models, ours) for _ in range(arguments.rounds)]
            if not arguments.without_peers:
                _measure_peers(row, (models, small), ours, results)
        results.keep(kept)
        print(f"{row.name} done, load {os.getloadavg()[0]:.1f}", flush=True)
    print(results.render(ROWS))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clip", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the models (3.3 GB, made if not there)")
    parser.add_argument(
        "--rows", nargs="+", default=["*"], help="patterns of rows to measure; none matches: only print"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of ours; the other tools run once")
    parser.add_argument("--without-peers", action="store_true", help="measure ours alone")
    return parser.parse_args()


def _make_models(folder: Path, shape: str) -> Path:
    models = folder / shape
    if not models.exists():
        print(f"generating {shape} into {models}", flush=True)
        generate(SHAPES[shape], models, n_models=N_MODELS)
    import_all(models)
    return models


@contextmanager
def _emptied(folder: Path) -> Iterator[Path]:
    """Lend the path of a folder that is not there yet, and remove what was put there."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_ours(row: Row, models: Path, output: Path) -> Run:
    shutil.rmtree(output, ignore_errors=True)
    command: list[str | Path] = [sys.executable, "-m", "benchmarks.engine.merge_once", models, row.method, output]
    command += ["--parameters", json.dumps(row.parameters)]
    command += [] if row.n_models is None else ["--models", str(row.n_models)]
    command += [] if row.is_based else ["--without-base"]
    command += [] if row.task is None else ["--task", f"model-{row.task}"]
    return run(command, environment={"OMP_NUM_THREADS": "1"})


def _measure_peers(row: Row, folders: tuple[Path, Path], ours: Path, results: Results) -> None:
    models, small = folders
    for peer in row.peers:
        if peer.tool not in results.start_ups:
            results.start_ups[peer.tool] = _start_up(peer.tool, small, ours.with_name("theirs"))
        read_once(models)
        with _emptied(ours.with_name("theirs")) as theirs:
            found = run_peer(row, peer, models, theirs)
            compared = ours if row.task is None else ours / "task"
            measured = Theirs(run=found, difference=compare(compared, theirs))
            results.theirs.setdefault(row.name, {})[peer.tool] = measured


def _start_up(tool: str, small: Path, output: Path) -> Run:
    """Return what a merge of next to nothing takes, the second time."""
    for _ in range(2):
        with _emptied(output):
            found = run_peer(START_UP, next(peer for peer in START_UP.peers if peer.tool == tool), small, output)
    return found


if __name__ == "__main__":
    main()
