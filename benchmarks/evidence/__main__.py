"""`make suite`: run the experiments, each number once, and write docs/evidence.md."""

import argparse
import os
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.evidence import adapter_runs, compression, overview, page
from benchmarks.evidence.processes import open_laboratory, run

FOLDER = Path(".suite")


def main() -> None:
    """Train, or measure and write."""
    arguments = _parse()
    torch.set_num_threads(1)
    folder: Path = arguments.folder
    in_processes = partial(run, folder=folder, processes=arguments.processes)
    if arguments.train:
        adapter_runs.train(open_laboratory(folder, say=True), in_processes)
        return
    if not arguments.page:
        names = arguments.only or [one.NAME for one in page.EXPERIMENTS if one not in page.APART]
        chosen = [one for one in page.EXPERIMENTS if one.NAME in names]
        laboratory = open_laboratory(folder, say=True)
        began_at = time.monotonic()
        in_processes(overview.rows())
        in_order = sorted(chosen, key=lambda one: one is compression)  # its parts are short: no process waits long
        in_processes([part for one in in_order for part in one.parts()])
        for experiment in chosen:
            page.save(experiment.NAME, experiment.find(laboratory))
        print(f"measured in {time.monotonic() - began_at:.0f} s by {arguments.processes} processes", flush=True)
    page.write()
    if broken := overview.broken_orders(page.read(overview)):
        raise SystemExit(f"docs/evidence/overview.json does not show what every paper shows: {'; '.join(broken)}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="keeps trained models and what was measured")
    parser.add_argument("--train", action="store_true", help="only train what is needed")
    parser.add_argument(
        "--page", action="store_true", help="only write page and figures anew, from docs/evidence/*.json"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="of one thread each")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[one.NAME for one in page.EXPERIMENTS],
        help="run these alone; by default all but those measured apart",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
