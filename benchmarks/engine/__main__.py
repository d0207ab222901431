"""Compares our merges with other tools', same files, whole processes in turn (`python -m benchmarks.engine -h`)."""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import JsonValue

from benchmarks.clip.peers import run_peer
from benchmarks.clip.rows import FUSION_BENCH, ROWS
from benchmarks.engine.generate import generate
from benchmarks.engine.merge_once import import_all
from benchmarks.engine.processes import Floor, Run, forget, measure_floor, read_once, run
from benchmarks.engine.shapes import SHAPES
from benchmarks.parity.environments import prepare

METHODS = ("task_arithmetic", "ties")
# what must be reached: the merge alone, as in a warm worker, against mergekit's process
GOALS = {
    "task_arithmetic": 8.0,
    "ties": 30.0,
    "breadcrumbs": 25.0,
    "dare_ties": 30.0,
    "model_stock": 15.0,
    "karcher": 80.0,
    "slerp": 8.0,
}
FUSION_BENCH_GOAL = 10.0
FUSION_BENCH_ROWS = {  # what benchmarks.clip asks it for under our defaults
    row.method: (row, peer)
    for row in ROWS
    for peer in row.peers
    if peer.tool == FUSION_BENCH and row.name == row.method
}


@dataclass(frozen=True)
class Peer:
    """How mergekit is asked for what `merge_once.PARAMETERS` asks us for."""

    call: str
    of_model: Mapping[str, JsonValue] = field(default_factory=dict)
    of_all: Mapping[str, JsonValue] = field(default_factory=dict)
    n_models: int | None = None  # None: all there are
    is_based: bool = True  # whether it takes the base model; slerp calls its first model so


PEERS = {
    "average": Peer("linear", {"weight": 1.0}, is_based=False),
    "task_arithmetic": Peer("task_arithmetic", {"weight": 1.0}, {"lambda": 0.3}),
    "ties": Peer("ties", {"weight": 1.0, "density": 0.2}),
    "breadcrumbs": Peer("breadcrumbs", {"weight": 1.0, "density": 0.15, "gamma": 0.01}, {"lambda": 0.3}),
    "dare_ties": Peer("dare_ties", {"weight": 1.0, "density": 0.2}),
    "karcher": Peer("karcher", is_based=False),
    "model_stock": Peer("model_stock"),
    "slerp": Peer("slerp", of_all={"t": 0.5}, n_models=2, is_based=False),
}


@dataclass(frozen=True)
class Comparison:
    """The runs of one method."""

    method: str
    ours: list[Run]
    theirs: list[Run]
    floors: list[Floor]  # one per run of ours
    fusion_bench: list[Run]

    def render(self) -> str:
        """Return the method's rows of the table, and its ratios."""
        lines = [_row(f"{self.method}, ours", self.ours)]
        inner = [json.loads(one.last_line)["seconds"] for one in self.ours]
        if self.theirs:
            lines.append(_row(f"{self.method}, mergekit", self.theirs))
            theirs = statistics.median(one.wall_seconds for one in self.theirs)
            ours = statistics.median(one.wall_seconds for one in self.ours)
            merge = statistics.median(inner)
            lines.append(
                f"{'':28}the merge alone {merge:.2f} s; mergekit takes {theirs / merge:.1f} x as long as the merge, "
                f"{theirs / ours:.1f} x as long as the process (goal {GOALS.get(self.method, '-')}, of the merge)"
            )
        else:
            lines.append(f"{'':28}the merge alone {statistics.median(inner):.2f} s ({min(inner):.2f}–{max(inner):.2f})")
        if self.fusion_bench:
            lines += self._render_fusion_bench(statistics.median(inner))
        n_passes = json.loads(self.ours[0].last_line)["n_passes"]
        floors = [floor.total(n_passes) for floor in self.floors]
        ratio = statistics.median(one / floor for one, floor in zip(inner, floors, strict=True))
        lines.append(
            f"{'':28}floor {statistics.median(floors):.2f} s ({n_passes} x read, write, hash); the merge alone takes "
            f"{ratio:.1f} x as long"
        )
        return "\n".join(lines)

    def _render_fusion_bench(self, merge: float) -> list[str]:
        theirs = statistics.median(one.wall_seconds for one in self.fusion_bench)
        warm = statistics.median(float(one.last_line) for one in self.fusion_bench)  # once it was imported
        return [
            _row(f"{self.method}, fusion-bench", self.fusion_bench),
            f"{'':28}it takes {theirs / merge:.1f} x as long as the merge (goal {FUSION_BENCH_GOAL}), without its "
            f"imports ({warm:.2f} s) {warm / merge:.1f} x",
        ]


def main() -> None:
    """Generate, merge in turn, print the table."""
    arguments = _parse()
    with _folder(arguments.data) as folder:
        models = folder / arguments.shape
        if not models.exists():
            print(f"generating {arguments.shape} into {models}", flush=True)
            generate(SHAPES[arguments.shape], models, n_models=arguments.models)
        import_all(models)
        mergekit = None if arguments.without_mergekit else prepare("mergekit").parent / "mergekit-yaml"
        comparisons = [Comparison(method, [], [], [], []) for method in arguments.method]
        settle = forget if arguments.cold else read_once
        for turn in range(arguments.rounds):
            for comparison in comparisons:
                settle(models)
                taken = _run_ours(models, comparison.method, folder, arguments.threads)
                floor = measure_floor(models, folder / "out", settle)
                shutil.rmtree(folder / "out")
                comparison.ours.append(taken)
                comparison.floors.append(floor)
                if mergekit is not None:
                    settle(models)
                    comparison.theirs.append(_run_mergekit(mergekit, models, comparison.method, folder))
                if arguments.with_fusion_bench and comparison.method in FUSION_BENCH_ROWS:
                    settle(models)
                    comparison.fusion_bench.append(_run_fusion_bench(models, comparison.method, folder))
                print(f"round {turn + 1}: {comparison.method} done, load {os.getloadavg()[0]:.1f}", flush=True)
        print(f"\n{arguments.shape}, base + {arguments.models}, {arguments.rounds} rounds, {os.cpu_count()} cores")
        print(f"{'':28}{'wall s (least–most)':>26}{'CPU s':>9}{'anonymous MB':>15}")
        print("\n".join(comparison.render() for comparison in comparisons))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="0.1b")
    parser.add_argument("--models", type=int, default=3, help="fine-tuned models beside the base")
    parser.add_argument("--method", choices=PEERS, nargs="+", default=METHODS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of our merge; default: one per core")
    parser.add_argument("--without-mergekit", action="store_true")
    parser.add_argument("--with-fusion-bench", action="store_true", help="measure it too, where it has the method")
    parser.add_argument("--cold", action="store_true", help="drop the inputs from the page cache before each run")
    parser.add_argument("--data", type=Path, help="folder that keeps the generated models; default: a temporary one")
    return parser.parse_args()


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="amalgam-engine-") as folder:
        yield Path(folder)


def _run_ours(models: Path, method: str, folder: Path, threads: int | None) -> Run:
    output = folder / "out"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.engine.merge_once", str(models), method, str(output)]
    if threads is not None:
        command += ["--threads", str(threads)]
    if PEERS[method].n_models is not None:
        command += ["--models", str(PEERS[method].n_models)]
    if not PEERS[method].is_based:
        command += ["--without-base"]
    return run(command, environment={"OMP_NUM_THREADS": "1"})


def _run_mergekit(program: Path, models: Path, method: str, folder: Path) -> Run:
    output, config, peer = folder / "out", folder / "mergekit.yaml", PEERS[method]
    names = sorted(path.name for path in models.iterdir() if path.is_dir() and path.name != "base")
    merged = [str(models / name) for name in names[: peer.n_models]]
    document: dict[str, JsonValue] = {
        "merge_method": peer.call,
        "models": [{"model": path, "parameters": dict(peer.of_model)} for path in merged],
        "parameters": dict(peer.of_all),
        "dtype": "bfloat16",
    }
    if peer.is_based:
        document["base_model"] = str(models / "base")
    elif peer.call == "slerp":
        document["base_model"] = merged[0]
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    try:
        return run([program, config, output], environment={"HF_HUB_OFFLINE": "1"})
    finally:
        shutil.rmtree(output, ignore_errors=True)


def _run_fusion_bench(models: Path, method: str, folder: Path) -> Run:
    output = folder / "out"
    try:
        return run_peer(*FUSION_BENCH_ROWS[method], models, output)
    finally:
        shutil.rmtree(output, ignore_errors=True)


def _row(name: str, runs: list[Run]) -> str:
    walls = [one.wall_seconds for one in runs]
    wall = f"{statistics.median(walls):.2f} ({min(walls):.2f}–{max(walls):.2f})"
    cpu = statistics.median(one.cpu_seconds for one in runs)
    peak = max(one.anonymous_bytes for one in runs) / 1e6
    return f"{name:28}{wall:>26}{cpu:>9.1f}{peak:>15.0f}"


if __name__ == "__main__":
    main()
