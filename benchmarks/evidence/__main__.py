"""`make evidence`: run the experiments, each number once, and write docs/evidence.md."""

import argparse
import time
from pathlib import Path

import torch

from benchmarks.evidence import linearized, page
from benchmarks.evidence.laboratory import Laboratory
from benchmarks.suite.inputs import open_suite

FOLDER = Path(".suite")


def main() -> None:
    """Train, or measure and write."""
    arguments = _parse()
    torch.set_num_threads(1)
    if not arguments.page:
        laboratory = Laboratory(open_suite(arguments.folder, say=True), arguments.folder / "evidence")
        if arguments.train:
            linearized.train(laboratory)
            return
        for experiment in page.EXPERIMENTS:
            if not arguments.only or experiment.NAME in arguments.only:
                began_at = time.monotonic()
                page.save(experiment.NAME, experiment.find(laboratory))
                print(f"{experiment.NAME}: {time.monotonic() - began_at:.0f} s", flush=True)
    page.write()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="keeps trained models and what was measured")
    parser.add_argument("--train", action="store_true", help="only train what is needed")
    parser.add_argument(
        "--page", action="store_true", help="only write page and figures anew, from docs/evidence/*.json"
    )
    parser.add_argument("--only", nargs="+", choices=[one.NAME for one in page.EXPERIMENTS], help="run these alone")
    return parser.parse_args()


if __name__ == "__main__":
    main()
