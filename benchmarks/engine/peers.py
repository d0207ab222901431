"""Runs another tool as a whole process over the same files, and compares its result with ours."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from pydantic import JsonValue
from safetensors import safe_open
from torch import Tensor

from benchmarks.engine.floor import weight_files
from benchmarks.engine.processes import Run, run
from benchmarks.engine.rows import MERGEKIT, Peer, Row
from benchmarks.parity.environments import prepare

TOLERANCE = 2.5e-7  # of float32: two units in the last place of the largest weights, which are near 1
UNIT = 2.0**-7  # of bfloat16: its last place, relative to a number, at most
PART = 1 << 22  # elements that are compared at a time
FUSION_BENCH_SCRIPT = Path(__file__).parents[1] / "parity" / "oracle_fusion_bench.py"
OF_EACH_MODEL = ("density", "gamma", "epsilon")  # what mergekit takes per model
UNBASED = ("linear", "slerp", "passthrough")  # what it takes no base model for
UNWEIGHTED = ("slerp", "karcher", "model_stock", "sce", "nearswap", "arcee_fusion", "ram", "ramplus_tl", "passthrough")


@dataclass(frozen=True)
class Difference:
    """How far two results are apart; entries count as different beyond what rounding to their dtype may do."""

    n_entries: int
    n_different: int
    largest: float

    def __str__(self) -> str:
        """Return how many entries differ, and the largest difference."""
        share = 100 * self.n_different / self.n_entries
        count = f"{self.n_different}" if share < 0.01 else f"{share:.2f} %"
        return f"{count} ({self.largest:.0e})"


def run_peer(row: Row, peer: Peer, folder: Path, output: Path, dtype: torch.dtype) -> Run:
    """Let a tool merge a folder's models, which are of that dtype, into the folder `output`."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "base")
    inputs = [folder / "base", *(folder / name for name in names[: row.n_models])]
    if peer.tool == MERGEKIT:
        return _run_mergekit(row, peer, inputs, output, str(dtype).removeprefix("torch."))
    return _run_fusion_bench(row, peer, inputs, output)


def _run_mergekit(row: Row, peer: Peer, inputs: Sequence[Path], output: Path, dtype: str) -> Run:
    base, *models = inputs
    own: dict[str, JsonValue] = {name: peer.parameters[name] for name in OF_EACH_MODEL if name in peer.parameters}
    if peer.call not in UNWEIGHTED:
        own["weight"] = 1.0
    document: dict[str, JsonValue] = {
        "merge_method": peer.call,
        "models": [{"model": str(model), "parameters": own} for model in models],
        "parameters": {name: value for name, value in peer.parameters.items() if name not in own},
        "dtype": dtype,
    }
    if peer.call == "slerp":
        document["base_model"] = str(models[0])
    elif row.is_based and peer.call not in UNBASED:
        document["base_model"] = str(base)
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    program = prepare(MERGEKIT).parent / "mergekit-yaml"
    return run([program, config, output], environment={"HF_HUB_OFFLINE": "1"})


def _run_fusion_bench(row: Row, peer: Peer, inputs: Sequence[Path], output: Path) -> Run:
    output.mkdir()
    order: dict[str, JsonValue] = {
        "call": peer.call,
        "is_based": row.is_based,
        "inputs": [str(path) for path in inputs],
        "left_out": [],
        "output": str(output / "model.safetensors"),
        "parameters": dict(peer.parameters),
        "weights": [1.0] * (len(inputs) - 1),
        "task": row.task,
    }
    orders = output.with_suffix(".json")
    orders.write_text(json.dumps([order]), encoding="utf-8")
    environment = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    return run([prepare(peer.tool), FUSION_BENCH_SCRIPT, orders], environment=environment)


def compare(ours: Path, theirs: Path) -> Difference:
    """Return how far the weights of two folders are apart, whatever files they lie in.

    Float32 may differ by TOLERANCE; bfloat16 by one unit in the last place of the entry, or of the root mean square of
    its tensor where the entry is smaller than that (what is added up has rounding errors of that size).
    """
    n_entries, n_different, largest = 0, 0, 0.0
    with ExitStack() as stack:
        mine, other = (
            {name: file for path in weight_files(folder) for file in [stack.enter_context(safe_open(path, "pt"))]
             for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            for folder in (ours, theirs)
        )  # fmt: skip
        if not set(mine) <= set(other):
            raise RuntimeError(f"{theirs} lacks {sorted(set(mine) - set(other))}, which {ours} has.")
        for name, file in mine.items():
            found, expected = file.get_tensor(name).flatten(), other[name].get_tensor(name).flatten()
            typical = 0.0 if found.dtype == torch.float32 else float(found.float().square().mean().sqrt())
            for some, others in zip(found.split(PART), expected.split(PART), strict=True):
                one, two = some.float(), others.float()
                apart = (one - two).abs()
                allowed: Tensor | float = TOLERANCE
                if found.dtype != torch.float32:
                    allowed = torch.maximum(one.abs(), two.abs()).clamp_(min=typical).mul_(UNIT)
                n_different += int(torch.count_nonzero(apart > allowed))
                largest = max(largest, float(apart.max()))
            n_entries += found.numel()
    return Difference(n_entries, n_different, largest)
