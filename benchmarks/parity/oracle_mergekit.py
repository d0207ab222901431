"""Runs in mergekit's own virtual environment: merges the cases that it is given, through its in-memory interface.

Usage: python oracle_mergekit.py CASES.json; a case names inputs (base first), output, call, parameters, weights,
and whether the base is given.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from mergekit.merge_methods import merge_state_dicts  # type: ignore[import-not-found]
from safetensors.torch import load_file, save_file

PER_MODEL = ("density", "gamma")  # parameters that it takes per model
UNBASED = ("linear", "slerp")  # methods that are given the models alone
UNWEIGHTED = ("slerp", "karcher", "model_stock", "sce", "nearswap", "arcee_fusion", "ram", "ramplus_tl")


def main() -> None:
    """Merge every case and write its result."""
    for case in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        save_file(_merge(case), case["output"])


def _merge(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    base, *models = [load_file(path) for path in case["inputs"]]
    named = {f"model {index}": model for index, model in enumerate(models[: len(case["weights"])])}
    parameters = dict(case["parameters"])
    parameters |= {name: dict.fromkeys(named, parameters[name]) for name in PER_MODEL if name in parameters}
    if case["call"] not in UNWEIGHTED:
        parameters["weight"] = dict(zip(named, case["weights"], strict=True))
    is_based = case["is_based"] and case["call"] not in UNBASED
    origin = "model 0" if case["call"] == "slerp" else "base" if is_based else None
    inputs = {"base": base, **named} if is_based else named
    merged = merge_state_dicts(inputs, case["call"], base=origin, parameters=parameters, dtype=torch.float32)
    return {name: tensor.detach().contiguous().clone() for name, tensor in merged.items()}


if __name__ == "__main__":
    main()
