"""TSV-Merge and WUDI on one transformer block's matrices against fusion-bench's own functions (`-h` for options).

There is no floor: nothing is read or written, all of it is arithmetic.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from pydantic import JsonValue
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.domain.parameter_checks import fill_defaults
from benchmarks.parity.environments import REQUIREMENTS, prepare
from benchmarks.telling import describe_machine, judge, spread, today, write_between
from workers.catalog import load_method
from workers.checkpoints import parallel
from workers.checkpoints.memory import keep_freed_memory
from workers.contract import MergeContext

SHAPES = dict.fromkeys(("key", "out", "query", "value"), (768, 768)) | {"fc1": (3072, 768), "fc2": (768, 3072)}
PARAMETERS: dict[str, dict[str, JsonValue]] = {"tsv_m": {}, "wudi": {"steps": 20}}
GOALS = {"tsv_m": 3.0, "wudi": 8.0}  # times as fast as fusion-bench
LARGEST_DIFFERENCE = {"tsv_m": 1e-4}  # of the largest entry, where it is a goal
HEAD = (
    "| method | tasks | n | ours, s | CPU, s | fusion-bench, s | ratio (goal) | largest difference |",
    "|---|---|---|---|---|---|---|---|",
)
THEIRS = Path(__file__).with_name("fusion_bench_once.py")


def main() -> None:
    """Merge the same matrices on both sides, in turn, and print a table for each method."""
    arguments = _parse()
    others = () if arguments.without_peers else (REQUIREMENTS["fusion-bench"],)
    about = f"{today()}, {describe_machine(*others)}"
    print(about)
    keep_freed_memory()  # as a job's process does
    with tempfile.TemporaryDirectory(prefix="amalgam-spectral-") as folder:
        for method in arguments.methods:
            lines = [*HEAD]
            print("\n".join(lines), flush=True)
            for n_tasks in arguments.tasks:
                lines.append(_measure(method, draw_models(n_tasks), Path(folder), arguments))
                print(lines[-1], flush=True)
            if arguments.write is not None:
                write_between(arguments.write, method, "\n".join([about, "", *lines]))


def _measure(method: str, models: Sequence[dict[str, Tensor]], folder: Path, arguments: argparse.Namespace) -> str:
    """Merge on both sides and return the row of the table."""
    ours, theirs, difference = _compare(method, models, folder, arguments)
    wall, cpu = [one.wall for one in ours], [one.cpu for one in ours]
    cells = [method, str(len(models) - 1), str(len(ours)), spread(wall), spread(cpu), "", "", ""]
    if theirs:
        ratio = judge(median(theirs) / median(wall), GOALS[method])
        verdict = " **too far**" if difference > LARGEST_DIFFERENCE.get(method, difference) else ""
        cells[5:] = [spread(theirs), ratio, f"{difference:.1e}{verdict}"]
    return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class Seconds:
    """What one merge took: by the clock, and of all threads together."""

    wall: float
    cpu: float


def _compare(
    method: str, models: Sequence[dict[str, Tensor]], folder: Path, arguments: argparse.Namespace
) -> tuple[list[Seconds], list[float], float]:
    """Return what each of our merges took, each of theirs, and the largest difference of the last ones."""
    ours: list[Seconds] = []
    theirs: list[float] = []
    merged: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for _ in range(arguments.rounds):
        took, merged = merge(method, models, arguments.threads)
        ours.append(took)
        if arguments.without_peers:
            continue
        seconds, expected = merge_with_fusion_bench(method, models, folder, arguments.threads)
        theirs.append(seconds)
    return ours, theirs, max((_distance(merged[name], expected[name]) for name in expected), default=0.0)


def draw_models(n_tasks: int) -> list[dict[str, Tensor]]:
    """Return a block's matrices, base and fine-tuned; task vectors' spectra decay, some directions are in common."""
    generator = torch.Generator().manual_seed(20261122)
    models: list[dict[str, Tensor]] = [{} for _ in range(1 + n_tasks)]
    for name, (rows, columns) in SHAPES.items():
        base = 0.02 * torch.randn(rows, columns, generator=generator)
        smaller = min(rows, columns)
        decay = torch.linspace(1, smaller, smaller).pow(-0.7)
        shared = torch.randn(smaller, columns, generator=generator)
        models[0][name] = base
        for model in models[1:]:
            mixed = 0.3 * shared + torch.randn(smaller, columns, generator=generator)
            noise = torch.randn(rows, smaller, generator=generator)
            model[name] = base + 1e-4 * (noise * decay) @ mixed / smaller**0.5
    return models


def merge(method: str, models: Sequence[dict[str, Tensor]], threads: int) -> tuple[Seconds, dict[str, Tensor]]:
    """Return what our method took, run as the engine does, and its merged task vectors.

    Each matrix is merged on one thread.
    """
    ours, weights = load_method(method), (1.0,) * (len(models) - 1)
    effective = fill_defaults(ours.card.parameters, PARAMETERS[method], n_models=len(weights))
    parameters = ours.parameters.model_validate(effective)
    stacks = {name: torch.stack([model[name] for model in models[1:]]) for name in SHAPES}

    def merge_one(name: str) -> tuple[str, Tensor]:
        context = MergeContext(
            tensor=name, shape=SHAPES[name], offset=0, position=0, weights=weights, spread=parallel.spread
        )
        return name, ours.merge(models[0][name], stacks[name], parameters, context)

    with parallel.one_torch_thread():
        began_at, cpu_before = time.perf_counter(), time.process_time()
        merged = dict(parallel.map_in_order(merge_one, sorted(SHAPES), threads=threads))
        took = Seconds(time.perf_counter() - began_at, time.process_time() - cpu_before)
    return took, {name: result - models[0][name] for name, result in merged.items()}


def merge_with_fusion_bench(
    method: str, models: Sequence[dict[str, Tensor]], folder: Path, threads: int
) -> tuple[float, dict[str, Tensor]]:
    """Return the seconds that fusion-bench's function takes, and its merged task vectors."""
    inputs, output = folder / "models.safetensors", folder / "merged.safetensors"
    flat = {f"{index}.{name}": tensor for index, model in enumerate(models) for name, tensor in model.items()}
    save_file(flat, inputs)
    order = json.dumps({"method": method, "inputs": str(inputs), "output": str(output), "threads": threads})
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = [str(prepare("fusion-bench")), str(THEIRS), order]
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1]), load_file(output)


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spectral", description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=[4, 8], help="numbers of tasks (default: 4 8)")
    parser.add_argument("--methods", nargs="+", default=list(GOALS), choices=list(GOALS))
    parser.add_argument("--rounds", type=int, default=1, help="of ours and theirs in turn; medians, and their spread")
    parser.add_argument("--without-peers", action="store_true", help="measure ours alone")
    parser.add_argument("--write", type=Path, help="page to put tables into, between <!-- METHOD --> and <!-- end -->")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads, both sides")
    return parser.parse_args()


if __name__ == "__main__":
    main()
