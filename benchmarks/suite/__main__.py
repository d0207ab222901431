"""`make suite-methods`: merge five fine-tuned encoders by every method, measure them, write docs/suite.md."""

import argparse
import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from app.domain.catalog import load_catalog
from benchmarks.suite.inputs import SEED, open_suite
from benchmarks.suite.page import render
from benchmarks.suite.recipes import SHORT_GRIDS, why_left_out
from benchmarks.suite.rows import REFERENCES, measure_row, read_row

PAGE = Path(__file__).parents[2] / "docs" / "suite.md"
FOLDER = Path(".suite")


def main() -> None:
    """Train what is missing, measure what is not known yet, write the page."""
    arguments = _parse()
    folder: Path = arguments.folder
    suite = open_suite(folder, say=True)
    reasons = {card.name: why_left_out(card, len(suite.models)) for card in load_catalog().methods}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    names = arguments.method or [*REFERENCES, *(name for name in reasons if name not in left_out)]
    missing = [name for name in names if arguments.again or read_row(name) is None]
    if arguments.page:
        left_out |= dict.fromkeys(missing, "not measured yet")
        names = [name for name in names if name not in missing]
    else:
        _measure(sorted(missing, key=SHORT_GRIDS.__contains__), folder, arguments.processes)  # what takes longest, last
    rows = [row for name in names if (row := read_row(name)) is not None]
    if not arguments.method:
        PAGE.write_text(render(rows, left_out, seed=SEED), encoding="utf-8")
    print(render(rows, left_out, seed=SEED) if not arguments.method else json.dumps(rows, indent=1))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="keeps trained models")
    parser.add_argument("--method", nargs="+", help="measure these only, and write no page")
    parser.add_argument("--again", action="store_true", help="measure also what was measured before")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page of what is known")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    return parser.parse_args()


def _measure(names: Sequence[str], folder: Path, processes: int) -> None:
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawning, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        jobs = {pool.submit(measure_row, name, folder): name for name in names}
        for done, job in enumerate(as_completed(jobs), start=1):
            print(f"{done}/{len(names)} {jobs[job]}: {job.result():.0f} s", flush=True)


if __name__ == "__main__":
    main()
