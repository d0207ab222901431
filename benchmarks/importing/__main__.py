"""How fast an import hashes a model, against reading it and against each digest alone, in one run (`-h` for options).

Everything is the least of some rounds, in turn: the files from the page cache, or with --cold from the disk each time.
"""

import argparse
import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from benchmarks.engine.floor import forget, read_once
from workers.checkpoints.hashing import BUFFER_BYTES
from workers.pipelines.importing import import_checkpoint

Work = Callable[[], object]


def main() -> None:
    """Print a row for each thing that is done with the bytes."""
    arguments = _parse()
    model: Path = arguments.model
    files = sorted(model.rglob("*.safetensors"))
    n_bytes = sum(file.stat().st_size for file in files)
    works: dict[str, Work] = {
        "reading alone, one thread": lambda: _pass_over(files, lambda _: None),
        "SHA-256 alone, one thread": lambda: _pass_over(files, hashlib.sha256().update),
        "BLAKE3 alone, one thread": lambda: _pass_over(files, blake3().update),
        **{f"import, {n} threads": _import(model, n) for n in arguments.threads},
    }
    print(
        f"{len(files)} files, {n_bytes / 1e9:.2f} GB, {'from the disk' if arguments.cold else 'from the page cache'}\n"
    )
    print("| what | s | CPU, s | GB/s |\n|---|---:|---:|---:|")
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(arguments.rounds):
        for name, work in works.items():
            (forget if arguments.cold else read_once)(model)
            took[name].append(_time(work))
    for name, rounds in took.items():
        wall, cpu = min(wall for wall, _ in rounds), min(cpu for _, cpu in rounds)
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {n_bytes / 1e9 / wall:.2f} |")


def _import(model: Path, threads: int) -> Work:
    return lambda: import_checkpoint(model, lambda _: None, threads=threads)


def _pass_over(files: list[Path], take: Callable[[memoryview], object]) -> None:
    buffer = memoryview(bytearray(BUFFER_BYTES))
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while n_bytes := stream.readinto(buffer):
                take(buffer[:n_bytes])


def _time(work: Work) -> tuple[float, float]:
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - cpu


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.importing", description=__doc__)
    parser.add_argument("model", type=Path, help="a checkpoint's folder; benchmarks.engine.generate makes some")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of the import")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache before each")
    return parser.parse_args()


if __name__ == "__main__":
    main()
