"""What a merge costs as models grow: merges at several sizes, a line through their seconds, and what it says of more.

Seconds = start + bytes read · a + bytes written · b where inputs lie in the page cache: an element-wise merge does
nothing whose cost grows otherwise. Where they do not, the disk reads and writes, one after the other, and that takes
longer. What has not been measured (models of 70 and 405 billion parameters, other disks, networks) is computed from
this and from the rates given, and says so; what was measured beyond the line is held against it.
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
TWO_WORKERS = {"task_arithmetic": 1.62, "ties": 1.72}  # as fast as one: medians of benchmarks/service/README.md


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


@dataclass(frozen=True)
class Rates:
    """What bytes take, and what a worker costs."""

    disk: float  # bytes per second that are read or written
    network: float  # to and from the bucket
    price: float  # $ of an hour of a worker


@dataclass(frozen=True)
class Large:
    """What a merge takes whose inputs lie in a bucket and fit into no memory; seconds."""

    fetch: float
    work: float  # of the cores
    disk: float
    upload: float

    @property
    def merge(self) -> float:
        """The merge itself: the cores work while the disk reads and writes."""
        return max(self.work, self.disk)

    @property
    def alone(self) -> float:
        """All of it, by one worker."""
        return self.fetch + self.merge + self.upload

    def shared(self, n: int, speedup: float) -> float:
        """All of it, by n workers, each with a disk and a network of its own, whose cores are so much faster."""
        return (self.fetch + self.upload) / n + max(self.work / speedup, self.disk / n)


def speed_up(n: int, of_two: float) -> float:
    """Return how much faster n workers are than one, from how much faster two are: a share stays serial (Amdahl)."""
    serial = 2 / of_two - 1
    return n / (1 + serial * (n - 1))


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
        "| method | parameters | models | read, GB | written, GB | merge, s | by the line, s | by the model, s "
        "| memory above idle, MB |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    disk = rates.disk * 1e9
    fitted = {
        method: fit([one for one in found if one.method == method and one.shape in rates.fit])
        for method in METHODS
        if any(one.method == method for one in found)
    }
    lines += [_row(one, fitted[one.method], disk if one.shape not in rates.fit else None) for one in found]
    beyond = [
        f"{one.seconds / _by_model(one, fitted[one.method], disk):.2f} ({one.method} {one.shape} base + {one.n_models})"
        for one in found
        if one.shape not in rates.fit
    ]
    lines += ["", f"Measured against the model, beyond the line: {', '.join(beyond) or 'nothing measured'}."]
    lines += ["", "| method | start, s | s per GB read | s per GB written |", "|---|---:|---:|---:|"]
    lines += [
        f"| {method} | {line.start:.2f} | {line.per_read * 1e9:.3f} | {line.per_written * 1e9:.3f} |"
        for method, line in fitted.items()
    ]
    lines += ["", *_tell_floors(found)]
    lines += ["", *_tell_large(found, fitted, rates)]
    return "\n".join(lines)


def _by_model(one: Measured, line: Line, disk: float | None) -> float:
    """Return what the model says; disk: bytes per second, None where all inputs lie in the page cache."""
    work = line.seconds(one.read_bytes, one.written_bytes)
    return work if disk is None else max(work, (one.read_bytes + one.written_bytes) / disk)


def _row(one: Measured, line: Line, disk: float | None) -> str:
    values = (
        one.method,
        f"{n_elements(SHAPES[one.shape]) / 1e9:.2f} B",
        f"base + {one.n_models}",
        f"{one.read_bytes / 1e9:.1f}",
        f"{one.written_bytes / 1e9:.1f}",
        f"{one.seconds:.1f}",
        f"{line.seconds(one.read_bytes, one.written_bytes):.1f}",
        f"{_by_model(one, line, disk):.1f}",
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

    A merge takes what its work takes, or its reading and writing over one disk, whichever is longer. Inputs in a bucket
    are fetched first. Of many workers each moves its share of the bytes; their work grows as that of two was measured.
    """
    heads = ["method", "parameters", "models", "inputs, GB", "result, GB", "fetch, min", "merge, min", "upload, min"]
    heads += ["one worker, min", f"{WORKERS} workers, min", "one, $", f"{WORKERS}, $"]
    speedups = {method: speed_up(WORKERS, rates.two_workers.get(method, 2.0)) for method in fitted}
    told = ", ".join(f"{speedup:.1f} ({method})" for method, speedup in speedups.items())
    lines = [
        f"Computed: disk {rates.disk:g} GB/s, network {rates.network:g} GB/s, ${rates.price:g} an hour of a worker; "
        f"the work of {WORKERS} workers is this much faster than that of one: {told}.",
        "",
        f"| {' | '.join(heads)} |",
        "|---|---|---|" + "---:|" * (len(heads) - 3),
    ]
    for method, line in fitted.items():
        passes = max(one.n_passes for one in found if one.method == method)
        for parameters, n_models in LARGE:
            written = STORED_BYTES * parameters
            inputs = (n_models + 1) * written
            large = compute(line, passes, inputs, written, Rates(rates.disk * 1e9, rates.network * 1e9, rates.price))
            shared = large.shared(WORKERS, speedups[method])
            minutes = (large.fetch, large.merge, large.upload, large.alone, shared)
            values = (
                f"{method} | {parameters / 1e9:.0f} B | base + {n_models}",
                *(f"{size / 1e9:.0f}" for size in (inputs, written)),
                *(f"{seconds / 60:.1f}" for seconds in minutes),
                *(f"{seconds / 3600 * rates.price:.2f}" for seconds in (large.alone, WORKERS * shared)),
            )
            lines.append(f"| {' | '.join(values)} |")
    return lines


def compute(line: Line, n_passes: int, inputs: float, written: float, rates: Rates) -> Large:
    """Return what a merge takes by the model. inputs, written: bytes."""
    read = n_passes * inputs
    return Large(
        fetch=inputs / rates.network,
        work=line.seconds(read, written),
        disk=(read + written) / rates.disk,
        upload=written / rates.network,
    )


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
    parser.add_argument(
        "--two-workers",
        type=_ratio,
        nargs="+",
        default=list(TWO_WORKERS.items()),
        metavar="METHOD=RATIO",
        help="how much faster two workers are than one, as benchmarks.service.parts prints it",
    )
    parser.add_argument("--price", type=float, default=0.5, help="$ of an hour of a worker")
    arguments = parser.parse_args()
    arguments.two_workers = dict(arguments.two_workers)
    return arguments


def _ratio(text: str) -> tuple[str, float]:
    method, _, ratio = text.partition("=")
    return method, float(ratio)


if __name__ == "__main__":
    main()
