"""Comparisons on small Llamas, for what needs layers or an architecture: layers stacked anew, adapters extracted."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from app.domain.requests import MergeRequest
from benchmarks.parity import adapters, ours
from benchmarks.parity.case import Case
from benchmarks.parity.document_runs import merge_request
from benchmarks.parity.environments import prepare

FILE = "model.safetensors"


def order_stack(inputs: Mapping[str, Path], case: Case, output: Path) -> dict[str, Any]:
    """Return what fusion-bench is asked to do."""
    return {
        "call": case.call,
        "inputs": [str(inputs[ref] / FILE) for ref in ("base", "model-0")],
        "left_out": [],
        "parameters": dict(case.oracle_parameters),
        "weights": list(case.weights),
        "output": str(output),
    }


def stack(inputs: Mapping[str, Path], case: Case, output: Path) -> dict[str, Tensor]:
    """Merge a case of one model's layers into the folder `output`; return the tensors."""
    request = {"method": case.method, "models": [{"checkpoint": "model-0"}], "parameters": dict(case.parameters)}
    checkpoints = {"model-0": ours.open_checkpoint(inputs["model-0"])}
    return merge_request(MergeRequest.model_validate(request), checkpoints, output)


def extract(inputs: Mapping[str, Path], case: Case, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Extract an adapter from a model on both sides; return the dense models that ours and theirs make of the base."""
    base, model = ours.open_checkpoint(inputs["base"]), ours.open_checkpoint(inputs["model-0"])
    made = adapters.merge_models(case.method, case.parameters, case.weights, base, [model], folder / "ours")
    theirs = _extract_by_mergekit(inputs, case, folder / "theirs")
    mine, other = (
        load_file(adapters.fuse(base, ours.open_checkpoint(path), path.with_suffix(".fused")))
        for path in (made, theirs)
    )
    return mine, other


def _extract_by_mergekit(inputs: Mapping[str, Path], case: Case, output: Path) -> Path:
    options = [text for name, value in case.oracle_parameters.items() for text in (f"--{name}", *_say(value))]
    paths = ["--model", str(inputs["model-0"]), "--base-model", str(inputs["base"]), "--out-path", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command: list[str | Path] = [prepare("mergekit").with_name(case.call), *paths, *options]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return output


def _say(value: object) -> list[str]:
    return [] if value is True else [str(value)]
