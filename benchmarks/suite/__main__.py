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
from benchmarks.suite.groups import GROUPS, INDIVIDUAL, Group, group_of
from benchmarks.suite.inputs import SEED
from benchmarks.suite.page import Table, render
from benchmarks.suite.recipes import SHORT_GRIDS, why_left_out
from benchmarks.suite.rows import measure_row, read_row

PAGE = Path(__file__).parents[2] / "docs" / "suite.md"
FOLDER = Path(".suite")


def main() -> None:
    """Train what is missing, measure what is not known yet, write the page."""
    arguments = _parse()
    folder: Path = arguments.folder
    names = arguments.method or [group.name(row) for group in GROUPS for row in group.rows]
    missing = [name for name in names if arguments.again or read_row(name) is None]
    if not arguments.page:
        for group in GROUPS:
            if any(group_of(name)[0] is group for name in missing):
                group.open(folder)  # what is missing is trained here, not in each process
        _measure(sorted(missing, key=SHORT_GRIDS.__contains__), folder, arguments.processes)  # what takes longest, last
    if arguments.method:
        print(json.dumps([row for name in names if (row := read_row(name)) is not None], indent=1))
        return
    page = render([_table(group) for group in GROUPS], _left_out(), seed=SEED)
    PAGE.write_text(page, encoding="utf-8")
    print(page)


def _table(group: Group) -> Table:
    """Return what is measured of a group; nothing, if that is not its models alone."""
    rows = [row for name in group.rows if (row := read_row(group.name(name))) is not None]
    return Table(group, rows if any(row["method"] == INDIVIDUAL for row in rows) else [])


def _left_out() -> dict[str, str]:
    """Return the methods that have no row, and why."""
    rows = [group.rows for group in GROUPS]
    reasons = {card.name: why_left_out(card, rows) for card in load_catalog().methods}
    unknown = [group.name(row) for group in GROUPS for row in group.rows if read_row(group.name(row)) is None]
    return {name: reason for name, reason in reasons.items() if reason} | dict.fromkeys(unknown, "not measured yet")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="keeps trained models")
    parser.add_argument("--method", nargs="+", help="measure these only (lora/knots: of a table), write no page")
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
