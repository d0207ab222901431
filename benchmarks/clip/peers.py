"""Runs another tool as a whole process over the same files, and compares its result with ours."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from pydantic import JsonValue
from safetensors import safe_open

from benchmarks.clip.rows import MERGEKIT, Peer, Row
from benchmarks.engine.processes import Run, run
from benchmarks.parity.environments import prepare

TOLERANCE = 2.5e-7  # two units in the last place of the largest weights, which are near 1
FUSION_BENCH_SCRIPT = Path(__file__).parents[1] / "parity" / "oracle_fusion_bench.py"
OF_EACH_MODEL = ("density", "gamma", "epsilon")  # what mergekit takes per model
UNBASED = ("linear", "slerp", "passthrough")  # what it takes no base model for
UNWEIGHTED = ("slerp", "karcher", "model_stock", "sce", "nearswap", "arcee_fusion", "ram", "ramplus_tl", "passthrough")


@dataclass(frozen=True)
class Difference:
    """How far two results are apart."""

    n_entries: int
    n_different: int  # by more than the tolerance
    largest: float


def run_peer(row: Row, peer: Peer, folder: Path, output: Path) -> Run:
    """Let a tool merge a folder's models into the folder `output`."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "base")
    models = [folder / name for name in names[: row.n_models]]
    run_tool = _run_mergekit if peer.tool == MERGEKIT else _run_fusion_bench
    return run_tool(row, peer, folder / "base", models, output)


def _run_mergekit(row: Row, peer: Peer, base: Path, models: Sequence[Path], output: Path) -> Run:
    own: dict[str, JsonValue] = {name: peer.parameters[name] for name in OF_EACH_MODEL if name in peer.parameters}
    if peer.call not in UNWEIGHTED:
        own["weight"] = 1.0
    document: dict[str, JsonValue] = {
        "merge_method": peer.call,
        "models": [{"model": str(model), "parameters": own} for model in models],
        "parameters": {name: value for name, value in peer.parameters.items() if name not in own},
        "dtype": "float32",
    }
    if peer.call == "slerp":
        document["base_model"] = str(models[0])
    elif row.is_based and peer.call not in UNBASED:
        document["base_model"] = str(base)
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    program = prepare(MERGEKIT).parent / "mergekit-yaml"
    return run([program, config, output], environment={"HF_HUB_OFFLINE": "1"})


def _run_fusion_bench(row: Row, peer: Peer, base: Path, models: Sequence[Path], output: Path) -> Run:
    output.mkdir()
    order: dict[str, JsonValue] = {
        "call": peer.call,
        "is_based": row.is_based,
        "inputs": [str(path) for path in (base, *models)],
        "left_out": [],
        "output": str(output / "model.safetensors"),
        "parameters": dict(peer.parameters),
        "weights": [1.0] * len(models),
        "task": row.task,
    }
    orders = output.with_suffix(".json")
    orders.write_text(json.dumps([order]), encoding="utf-8")
    environment = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    return run([prepare(peer.tool), FUSION_BENCH_SCRIPT, orders], environment=environment)


def compare(ours: Path, theirs: Path) -> Difference:
    """Return how far the weights of two folders are apart."""
    n_entries, n_different, largest = 0, 0, 0.0
    with (
        safe_open(ours / "model.safetensors", framework="pt") as mine,
        safe_open(theirs / "model.safetensors", framework="pt") as other,
    ):
        for name in mine.keys():  # noqa: SIM118 (it is no mapping)
            apart = (mine.get_tensor(name).double() - other.get_tensor(name).double()).abs()
            n_entries += apart.numel()
            n_different += int(torch.count_nonzero(apart > TOLERANCE))
            largest = max(largest, float(apart.max()))
    return Difference(n_entries, n_different, largest)
