"""One comparison with another tool: where our methods should equal it, and where they differ for a reason.

The comparisons themselves lie in cases/, a file per method that has any, and are found there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

TOLERANCE = 1e-7  # about one unit in the last place of the largest weights, which are near 0.25
FLOAT32_SVD = 1e-6  # what singular vectors found in float32 cost

Values = Mapping[str, Any]  # parameters by name: of ours, or of the other tool
Inputs = Literal["checkpoints", "adapters", "llamas"]  # inputs.py, adapters.py, deep_inputs.py


@dataclass(frozen=True)
class Case:
    """One merge, done by us and by another implementation on the same files."""

    method: str
    variant: str  # what is special about it, for the table
    oracle: Literal["mergekit", "fusion-bench", "peft"]
    call: str  # its name for the method, or its class
    parameters: Values = field(default_factory=dict)  # ours
    oracle_parameters: Values = field(default_factory=dict)
    weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    inputs: Inputs = "checkpoints"  # what is merged; with PEFT adapters, always
    post_steps: tuple[tuple[str, Values], ...] = ()  # ours: name and parameters
    statistics: str = ""  # the kind that both sides are given in place of data: "fisher" or "gram"
    is_based: bool = True  # whether the base model is given to methods that take one
    left_out: tuple[str, ...] = ()  # tensors that another case compares
    tolerance: float = TOLERANCE  # how far equal results may be apart
    task: int | None = None  # of a multitask artifact: the model whose task is compared; None: what all share
    differs: str = ""  # why the results are not expected to be equal; empty: they are


LOADED = "its result, loaded"  # by PEFT: the adapter that we wrote
SCALAR, SMALL = "encoder.scale", "encoder.norm.bias"  # 1 and 3 entries
UNEQUAL = (0.5, 0.3, 0.2)


def find_cases(oracle: str, inputs: Inputs | None = None) -> tuple[Case, ...]:
    """Return the comparisons with one tool, by file; all of them, or those on one kind of inputs."""
    methods = sorted(path.stem for path in (Path(__file__).parent / "cases").glob("*.py"))
    found = [case for method in methods for case in import_module(f"benchmarks.parity.cases.{method}").CASES]
    return tuple(case for case in found if case.oracle == oracle and inputs in (None, case.inputs))
