"""Measures rows: our merge as a process of its own, its floor, and the other tools over the same files, in turn.

What was measured is kept in a file beside the models, so that rows can be measured in several runs, and our side alone
again; the tables are always of all that is there.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.engine.floor import forget, measure_floor, read_once, weight_files
from benchmarks.engine.generate import generate
from benchmarks.engine.merge_once import import_all
from benchmarks.engine.peers import compare, run_peer
from benchmarks.engine.processes import Run, run
from benchmarks.engine.results import Measured, Results, Theirs, told
from benchmarks.engine.rows import FUSION_BENCH, MERGEKIT, START_UP, Row
from benchmarks.engine.shapes import SHAPES
from benchmarks.parity.environments import REQUIREMENTS
from benchmarks.telling import describe_machine, today, write_between

TOOLS = (MERGEKIT, FUSION_BENCH)
LARGE = ("1.1b", "3b")  # shapes of which the floor is seconds


@dataclass(frozen=True)
class Defaults:
    """What a benchmark measures if it is not told otherwise."""

    rows: Sequence[Row]
    shape: str
    tiny: str  # a shape of next to nothing: what starting a tool takes
    n_models: int


def main(prog: str, about: str | None, defaults: Defaults) -> None:
    """Generate the models, measure, print the tables, and put them into a page if one is named."""
    arguments = _parse(prog, about, defaults)
    with _folder(arguments.data) as folder:
        measuring = Measuring(folder, defaults, arguments)
        for row in defaults.rows:
            if any(fnmatch(row.name, pattern) for pattern in arguments.rows):
                measuring.measure(row)
                print(f"{row.name} done, load {os.getloadavg()[0]:.1f}", flush=True)
        told = measuring.tell()
        print(told)
        if arguments.write is not None:
            write_between(arguments.write, measuring.name, told)


class Measuring:
    """The models of a shape, how they are measured, and what was found."""

    def __init__(self, folder: Path, defaults: Defaults, arguments: argparse.Namespace) -> None:
        self._folder = folder
        self._arguments = arguments
        self._rows = defaults.rows
        self.name = f"{arguments.shape}-cold" if arguments.cold else arguments.shape
        self._is_large = arguments.shape in LARGE
        self._settle = forget if arguments.cold else read_once
        self._models = _make_models(folder, arguments.shape, arguments.models)
        self._tiny = _make_models(folder, defaults.tiny, arguments.models)
        self._kept = folder / f"measured-{self.name}.json"
        self._results = Results.read(self._kept)

    def tell(self) -> str:
        """Return all that is known, in Markdown: of what, on which machine, the tables."""
        state = "dropped from the page cache before each run" if self._arguments.cold else "in the page cache"
        what = f"{self._arguments.shape}, base + {self._arguments.models}, inputs {state}"
        tools = [REQUIREMENTS[tool] for tool in self._results.start_ups]
        return (
            f"{what}; {self._results.tell(self._rows)}\non {describe_machine(*tools)}\n\n"
            f"{self._results.render(self._rows, is_cold=self._arguments.cold, is_large=self._is_large)}"
        )

    def measure(self, row: Row) -> None:
        """Measure a row, ours and theirs in turn, and keep what was found."""
        before = self._results.rows.get(row.name, Measured(date=today()))
        measured = Measured(date=today(), theirs=before.theirs)
        new: Mapping[str, Theirs] = {
            peer.tool: Theirs(date=today()) for peer in row.peers if peer.tool in self._arguments.peers
        }
        for turn in range(self._arguments.rounds):
            with _emptied(self._folder / "ours") as ours:
                self._settle(self._models)
                measured.ours.append(self._run_ours(row, ours))
                read = [self._models / name for name in told(measured.ours, "read")[-1]]
                sizes = [path.stat().st_size for path in weight_files(ours) if path.parent != ours / "task"]
                measured.floors.append(measure_floor(read, sizes, self._folder, self._settle))
                if turn < (self._arguments.peer_rounds or self._arguments.rounds):
                    self._run_peers(row, ours, new)
        measured.theirs |= new
        self._results.rows[row.name] = measured
        self._results.keep(self._kept)

    def _run_peers(self, row: Row, ours: Path, new: Mapping[str, Theirs]) -> None:
        for peer in row.peers:
            if peer.tool not in new:
                continue
            found, dtype = new[peer.tool], SHAPES[self._arguments.shape].dtype
            if peer.tool not in self._results.start_ups:
                self._results.start_ups[peer.tool] = self._start_up(peer.tool)
            with _emptied(self._folder / "theirs") as theirs, _emptied(self._folder / "same") as same:
                self._settle(self._models)
                found.runs.append(run_peer(row, peer, self._models, theirs, dtype))
                if found.difference is not None:
                    continue
                compared = ours if row.task is None else ours / "task"
                if peer.same is not None:
                    self._settle(self._models)
                    found.same, compared = self._run_ours(replace(row, parameters=peer.same), same), same
                found.difference = compare(compared, theirs)

    def _run_ours(self, row: Row, output: Path) -> Run:
        command: list[str | Path] = [sys.executable, "-m", "benchmarks.engine.merge_once", self._models, row.method]
        command += [output, "--parameters", json.dumps(row.parameters)]
        command += [] if row.n_models is None else ["--models", str(row.n_models)]
        command += [] if row.is_based else ["--without-base"]
        command += [] if row.task is None else ["--task", f"model-{row.task}"]
        command += [] if self._arguments.threads is None else ["--threads", str(self._arguments.threads)]
        return run(command, environment={"OMP_NUM_THREADS": "1"})

    def _start_up(self, tool: str) -> Run:
        """Return what a merge of next to nothing takes, the second time."""
        row, dtype = Row("average"), SHAPES[self._arguments.shape].dtype
        for _ in range(2):
            with _emptied(self._folder / "theirs") as theirs:
                found = run_peer(row, START_UP[tool], self._tiny, theirs, dtype)
        return found


def _make_models(folder: Path, shape: str, n_models: int) -> Path:
    models = folder / shape
    if not models.exists():
        print(f"generating {shape} into {models}", flush=True)
        generate(SHAPES[shape], models, n_models=n_models)
    import_all(models)
    return models


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="amalgam-engine-") as folder:
        yield Path(folder)


@contextmanager
def _emptied(folder: Path) -> Iterator[Path]:
    """Lend the path of a folder that is not there yet, and remove what was put there."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parse(prog: str, about: str | None, defaults: Defaults) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("--shape", choices=SHAPES, default=defaults.shape)
    parser.add_argument("--models", type=int, default=defaults.n_models, help="fine-tuned models beside the base")
    parser.add_argument(
        "--rows", nargs="+", default=["*"], help="patterns of rows to measure; none matches: only print"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of ours, the floor and the other tools, in turn")
    parser.add_argument("--peer-rounds", type=int, help="of the other tools, if fewer")
    parser.add_argument("--peers", nargs="*", choices=TOOLS, default=TOOLS, help="none: ours alone")
    parser.add_argument("--threads", type=int, help="cores that our merge keeps busy; default: all")
    parser.add_argument("--cold", action="store_true", help="drop the inputs from the page cache before each run")
    parser.add_argument("--data", type=Path, help="folder that keeps the models; default: a temporary one")
    parser.add_argument(
        "--write", type=Path, help="page to put the tables into, between <!-- SHAPE --> and <!-- end -->"
    )
    return parser.parse_args()
