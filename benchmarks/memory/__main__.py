"""How many copies of the largest tensor each method holds that sees whole tensors (`-h` for options).

A checkpoint of one matrix is merged at two sizes, each in a process of its own; what the peak of anonymous memory above
the idle process grows by, over what one float32 copy of the matrix grows by, is the number of copies: whatever does not
grow with the tensor cancels.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from pydantic import JsonValue

from app.domain.catalog import load_catalog
from benchmarks.engine.generate import generate
from benchmarks.engine.merge_once import import_all
from benchmarks.engine.processes import run
from benchmarks.engine.shapes import OneMatrix

COLUMNS = (512, 1024)
FASTER: dict[str, dict[str, JsonValue]] = {  # what takes long and holds no more for it
    "wudi": {"steps": 3},
    "doge_ta": {"steps": 3},
    "sce": {"density": 0.1},
}


def main() -> None:
    """Merge at both sizes and print a row for each method."""
    arguments = _parse()
    print("| method | granularity | copies | at most |\n|---|---|---:|---:|")
    with tempfile.TemporaryDirectory(prefix="amalgam-memory-", dir=arguments.data) as folder:
        for columns in COLUMNS:
            models = Path(folder) / str(columns)
            generate(OneMatrix(arguments.ratio * columns, columns), models, n_models=arguments.models)
            import_all(models)
        for method in arguments.methods or _list_methods():
            small, large = (_peak_bytes(Path(folder) / str(columns), method, arguments) for columns in COLUMNS)
            copies = (large - small) / (4 * arguments.ratio * (COLUMNS[1] ** 2 - COLUMNS[0] ** 2))
            card = load_catalog().method(method)
            allowed = _count_models(method, arguments.models) + card.working_copies
            verdict = " **too many**" if round(copies, 1) > allowed else ""
            print(f"| {method} | {card.granularity} | {copies:.1f}{verdict} | {allowed} |", flush=True)


def _list_methods() -> list[str]:
    """Return the methods that see whole tensors of dense models."""
    return [
        card.name
        for card in load_catalog().methods
        if card.accepts_dense and card.produces != "adapter" and card.granularity in ("tensor", "matrix", "model")
    ]


def _peak_bytes(models: Path, method: str, arguments: argparse.Namespace) -> int:
    """Return what a merge holds at its peak above the process that is about to begin it."""
    output = models.with_name("out")
    n_models = _count_models(method, arguments.models)
    command: list[str | Path] = [sys.executable, "-m", "benchmarks.engine.merge_once", models, method, output]
    command += ["--parameters", json.dumps(FASTER.get(method, {})), "--models", str(n_models)]
    found = run(command, environment={"OMP_NUM_THREADS": str(arguments.threads)}, sample_seconds=0.002)
    shutil.rmtree(output)
    idle: int = json.loads(found.last_line)["idle_bytes"]
    return found.anonymous_bytes - idle


def _count_models(method: str, wanted: int) -> int:
    return min(load_catalog().method(method).max_models or wanted, wanted)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--models", type=int, default=4, help="fine-tuned models beside the base (K)")
    parser.add_argument("--ratio", type=int, default=4, help="of the matrix's rows to its columns")
    parser.add_argument("--methods", nargs="+", help="default: all that see whole tensors")
    parser.add_argument("--threads", type=int, default=1, help="of OpenMP")
    parser.add_argument("--data", type=Path, help="where the models are put for the while; default: the system's")
    return parser.parse_args()


if __name__ == "__main__":
    main()
