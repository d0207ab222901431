"""What a merge costs as models grow: merges at several sizes, a line through their seconds, and what it says of more.

Seconds = start + bytes read · a + bytes written · b: an element-wise merge does nothing whose cost grows otherwise.
What has not been measured (models of 70 and 405 billion parameters, other disks, networks) is computed from that line
and from the rates given, and says so.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.engine.floor import measure_floor, read_once, weight_files
from benchmarks.engine.generate import generate
from benchmarks.engine.merge_once import import_all
from benchmarks.engine.processes import run
from benchmarks.engine.shapes import SHAPES, n_elements

METHODS = ("task_arithmetic", "ties")
SIZES = ("0.1b", "1.1b", "3b")
N_MODELS = (1, 3)
STORED_BYTES = 2  # of an element
LARGE = ((70e9, 8), (405e9, 4))  # parameters, models beside the base
WORKERS = 8  # that share one merge


@dataclass(frozen=True)
class Measured:
    """One merge."""

    method: str
    shape: str
    n_models: int
    n_passes: int
    read_bytes: int  # of all passes
    written_bytes: int
    seconds: float
    idle_bytes: int  # anonymous memory before it began
    peak_bytes: int
    floor_seconds: float | None = None  # benchmarks/engine/floor.py; None: measured before there was one


@dataclass(frozen=True)
class Line:
    """Seconds of a merge by what it reads and writes."""

    start: float  # seconds
    per_read: float  # seconds per byte
    per_written: float

    def seconds(self, read_bytes: float, written_bytes: float) -> float:
        """Return what a merge takes whose inputs lie in the page cache."""
        return self.start + self.per_read * read_bytes + self.per_written * written_bytes


def main() -> None:
    """Generate, merge, print what was measured and what follows from it."""
    arguments = _parse()
    kept = arguments.data / "scaling.json"
    found = [Measured(**one) for one in json.loads(kept.read_text())] if kept.exists() else []
    for shape in arguments.shapes:
        models = arguments.data / shape
        if not models.exists():
            print(f"generating {shape} into {models}", flush=True)
            generate(SHAPES[shape], models, n_models=max(N_MODELS))
        import_all(models)
        for method in METHODS:
            for n_models in N_MODELS:
                found = [one for one in found if (one.method, one.shape, one.n_models) != (method, shape, n_models)]
                found.append(_measure(models, method, shape, n_models))
                kept.write_text(json.dumps([asdict(one) for one in found]), encoding="utf-8")
                print(f"{shape} {method}, {n_models}: {found[-1].seconds:.1f} s", flush=True)
    print(render(found, arguments))


def render(found: Sequence[Measured], rates: argparse.Namespace) -> str:
    """Return the tables."""
    lines = [
        "| method | parameters | models | read, GB | written, GB | merge, s | by the line, s | memory above idle, MB |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    fitted = {
        method: fit([one for one in found if one.method == method and one.shape in rates.fit]) for method in METHODS
    }
    lines += [_row(one, fitted[one.method]) for one in found]
    lines += ["", "| method | start, s | s per GB read | s per GB written |", "|---|---:|---:|---:|"]
    lines += [
        f"| {method} | {line.start:.2f} | {line.per_read * 1e9:.3f} | {line.per_written * 1e9:.3f} |"
        for method, line in fitted.items()
    ]
    lines += ["", *_tell_floors(found)]
    lines += ["", *_tell_large(found, fitted, rates)]
    return "\n".join(lines)


def _row(one: Measured, line: Line) -> str:
    values = (
        one.method,
        f"{n_elements(SHAPES[one.shape]) / 1e9:.2f} B",
        f"base + {one.n_models}",
        f"{one.read_bytes / 1e9:.1f}",
        f"{one.written_bytes / 1e9:.1f}",
        f"{one.seconds:.1f}",
        f"{line.seconds(one.read_bytes, one.written_bytes):.1f}",
        f"{(one.peak_bytes - one.idle_bytes) / 1e6:.0f}",
    )
    return f"| {' | '.join(values)} |"


def fit(measured: Sequence[Measured]) -> Line:
    """Return the line through the seconds, by least squares of their relative errors; no coefficient is negative."""
    known = torch.tensor(
        [[1.0, one.read_bytes / 1e9, one.written_bytes / 1e9] for one in measured], dtype=torch.float64
    )
    seconds = torch.tensor([one.seconds for one in measured], dtype=torch.float64)
    weighted = known / seconds[:, None]
    columns = [0, 1, 2]
    while True:
        found = torch.linalg.lstsq(weighted[:, columns], torch.ones(len(seconds), 1, dtype=torch.float64)).solution[
            :, 0
        ]
        if bool((found >= 0).all()):
            break
        columns.pop(int(found.argmin()))
    values = dict(zip(columns, found.tolist(), strict=True))
    return Line(values.get(0, 0.0), values.get(1, 0.0) / 1e9, values.get(2, 0.0) / 1e9)


def _tell_floors(found: Sequence[Measured]) -> list[str]:
    """Return the table of floors, where they were measured."""
    lines = ["| method | shape | models | floor, s | times the floor |", "|---|---|---|---:|---:|"]
    for one in found:
        if one.floor_seconds is not None:
            values = (f"{one.floor_seconds:.2f}", f"{one.seconds / one.floor_seconds:.1f}")
            lines.append(f"| {one.method} | {one.shape} | base + {one.n_models} | {' | '.join(values)} |")
    return lines


def _tell_large(found: Sequence[Measured], fitted: Mapping[str, Line], rates: argparse.Namespace) -> list[str]:
    """Return the table of what was not measured.

    A merge is as slow as the slowest of: its own work, its reading from the disk, its writing there. Inputs in a bucket
    are fetched first. Of many workers each takes its share of all of it, at best: what it costs stays the same.
    """
    disk, network = rates.disk * 1e9, rates.network * 1e9
    heads = ["method", "parameters", "models", "inputs, GB", "result, GB", "fetch, min", "merge, min", "upload, min"]
    heads += ["one worker, min", f"{WORKERS} workers, min", "$"]
    lines = [
        f"Computed: disk {rates.disk:g} GB/s, network {rates.network:g} GB/s, ${rates.price:g} an hour of a worker.",
        "",
        f"| {' | '.join(heads)} |",
        "|---|---|---|" + "---:|" * (len(heads) - 3),
    ]
    for method, line in fitted.items():
        passes = max(one.n_passes for one in found if one.method == method)
        for parameters, n_models in LARGE:
            written = STORED_BYTES * parameters
            inputs = (n_models + 1) * written
            merge = max(line.seconds(passes * inputs, written), passes * inputs / disk, written / disk)
            minutes = [seconds / 60 for seconds in (inputs / network, merge, written / network)]
            values = (
                f"{method} | {parameters / 1e9:.0f} B | base + {n_models}",
                *(f"{size / 1e9:.0f}" for size in (inputs, written)),
                *(f"{one:.1f}" for one in (*minutes, sum(minutes), sum(minutes) / WORKERS)),
                f"{sum(minutes) / 60 * rates.price:.2f}",
            )
            lines.append(f"| {' | '.join(values)} |")
    return lines


def _measure(models: Path, method: str, shape: str, n_models: int) -> Measured:
    output = models.parent / "out"
    shutil.rmtree(output, ignore_errors=True)
    read_once(models)
    command: list[str | Path] = [sys.executable, "-m", "benchmarks.engine.merge_once", models, method, output]
    command += ["--models", str(n_models)]
    try:
        taken = run(command, environment={"OMP_NUM_THREADS": "1"})
        told = json.loads(taken.last_line)
        sizes = [path.stat().st_size for path in weight_files(output)]
        floor = measure_floor([models / name for name in told["read"]], sizes, models.parent, read_once)
    finally:
        shutil.rmtree(output, ignore_errors=True)
    written = STORED_BYTES * n_elements(SHAPES[shape])
    return Measured(
        method=method,
        shape=shape,
        n_models=n_models,
        n_passes=told["n_passes"],
        read_bytes=told["n_passes"] * (n_models + 1) * written,
        written_bytes=written,
        seconds=told["seconds"],
        idle_bytes=told["idle_bytes"],
        peak_bytes=taken.anonymous_bytes,
        floor_seconds=floor.total(told["n_passes"]),
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="keeps the models: 0.1b 1 GB, 1.1b 9 GB, 3b 27 GB")
    parser.add_argument("--shapes", nargs="*", default=SIZES, help="merge these; none: only print what is known")
    parser.add_argument(
        "--fit", nargs="+", default=SIZES[:2], help="sizes whose inputs fit into memory: the line is theirs"
    )
    parser.add_argument("--disk", type=float, default=2.0, help="GB/s that are read or written")
    parser.add_argument("--network", type=float, default=1.25, help="GB/s to and from the bucket (10 Gbit/s)")
    parser.add_argument("--price", type=float, default=0.5, help="$ of an hour of a worker")
    return parser.parse_args()


if __name__ == "__main__":
    main()
