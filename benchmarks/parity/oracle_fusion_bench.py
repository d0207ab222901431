"""Runs in fusion-bench's own virtual environment: merges the cases that it is given, as small modules in a model pool.

Usage: python oracle_fusion_bench.py CASES.json; a case names inputs (files or folders, base first), output, call,
parameters, weights; of a merge that looks at data also statistics, of linearized adapters base, adapters and ours.
Prints the seconds that all cases took, once everything was imported. What is no algorithm but a function is in
fusion_bench_functions.py.
Integer tensors and second names of tied ones are left out, unless a case says what is: its TIES would count them among
the entries to trim.
"""

import json
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from fusion_bench import method  # type: ignore[import-not-found]
from fusion_bench.modelpool import BaseModelPool  # type: ignore[import-not-found]
from safetensors.torch import load_file, save_file
from torch import nn

LEFT_OUT = ("lm_head.weight", "encoder.position_ids")
DESCENDING = ("WUDIMerging",)  # they take gradients
NOT_MATRICES = ("encoder.conv.weight", "encoder.norm.weight")  # its DOGE fails on them


class Model(nn.Module):
    """A bag of parameters under their own names, dots replaced."""

    def __init__(self, path: str, left_out: tuple[str, ...]) -> None:
        super().__init__()
        for name, tensor in _load(path):
            if name not in left_out:
                self.register_parameter(name.replace(".", "__"), nn.Parameter(tensor))


class LayeredModel(nn.Module):
    """The same parameters in layers, for methods that look for linear ones."""

    def __init__(self, path: str, left_out: tuple[str, ...]) -> None:
        super().__init__()
        layers: dict[str, dict[str, nn.Parameter]] = {}
        for name, tensor in _load(path):
            if name not in left_out:
                layer, _, parameter = name.rpartition(".")
                layers.setdefault(layer, {})[parameter] = nn.Parameter(tensor)
        for layer, parameters in layers.items():
            is_linear = "weight" in parameters and parameters["weight"].ndim == 2
            module = nn.Linear(1, 1, bias="bias" in parameters) if is_linear else nn.Module()
            for parameter, value in parameters.items():
                module.register_parameter(parameter, value)
            self.add_module(layer.replace(".", "__"), module)


def _load(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a file, or of all files of a folder."""
    files = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else [path]
    for file in files:
        yield from load_file(file).items()


def main() -> None:
    """Merge every case and write its result."""
    began_at = time.perf_counter()
    for case in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        with torch.set_grad_enabled(case["call"] in DESCENDING):
            merged = _run(case)
        save_file(
            {name.replace("__", "."): tensor.contiguous().clone() for name, tensor in merged.items()}, case["output"]
        )
    print(time.perf_counter() - began_at)


def _run(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    functions = import_module("fusion_bench_functions")  # beside this script
    if case["call"] == "LinearizedModelWraper":
        return dict(functions.run_linearized(case))
    if case["call"] in functions.FUNCTIONS:
        left_out = case.get("left_out", LEFT_OUT)
        base, *models = [
            {name: tensor for name, tensor in _load(path) if name not in left_out} for path in case["inputs"]
        ]
        return dict(functions.FUNCTIONS[case["call"]](base, models[: len(case["weights"])], case))
    return dict(_merge(case).state_dict())


def _merge(case: dict[str, Any]) -> nn.Module:
    left_out = (*LEFT_OUT, *NOT_MATRICES) if case["call"] == "DOGE_TA_Algorithm" else case.get("left_out", LEFT_OUT)
    make = LayeredModel if case["call"] == "OPCM" else Model
    base, *models = [make(path, left_out) for path in case["inputs"]]
    pool: dict[str, nn.Module] = {f"model-{index}": model for index, model in enumerate(models[: len(case["weights"])])}
    if case["call"] != "SlerpMergeAlgorithm":
        pool["_pretrained_"] = base
    parameters = dict(case["parameters"])
    if "merged_by" in parameters:  # in a pool of its own: a method may write into the base that it is given
        pool["_merged_"] = _merge({**case, **parameters.pop("merged_by")})
    made = _find(case["call"])(**parameters).run(BaseModelPool(pool))
    merged: nn.Module = made["models"][f"model-{case['task']}"] if isinstance(made, dict) else made
    return merged


def _find(call: str) -> Any:
    if call.startswith("SingularValueCalibration"):
        return getattr(import_module("fusion_bench.method.singular_value_calibration"), call)
    if call != "OPCM":
        return getattr(method, call)
    package = ModuleType("fusion_bench.method.opcm")  # its own __init__ fails with transformers 5
    package.__path__ = [str(Path(method.__file__).parent / "opcm")]
    sys.modules[package.__name__] = package
    return import_module(f"{package.__name__}.opcm_general").OPCM


if __name__ == "__main__":
    main()
