"""`make parity`: merge the same files with our methods, mergekit and fusion-bench; write docs/parity.md.

Exits with 1 if results that should be equal are not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from app.domain.catalog import load_catalog
from benchmarks.parity import adapters, llama_runs, ours
from benchmarks.parity.case import FLOAT32_SVD, TOLERANCE, Case, find_cases
from benchmarks.parity.deep_inputs import write_deep_inputs
from benchmarks.parity.document_runs import find_documents, merge_documents
from benchmarks.parity.environments import REQUIREMENTS, prepare
from benchmarks.parity.inputs import SEED, write_given_statistics, write_inputs
from benchmarks.parity.uncompared import REASONS, STEPS

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
DOCUMENTS_URL = "../benchmarks/parity/documents"
SCRIPTS = {"mergekit": "oracle_mergekit.py", "fusion-bench": "oracle_fusion_bench.py", "peft": "oracle_peft.py"}


@dataclass(frozen=True)
class Row:
    """What comparing one case gave."""

    case: Case
    n_tensors: int
    n_different: int  # entries further apart than the tolerance
    largest: float

    @property
    def is_as_expected(self) -> bool:
        """Whether equal results were equal, and others were not."""
        return (self.largest <= self.case.tolerance) == (not self.case.differs)


def main() -> int:
    """Run every case on both sides, write the page, and return the exit status."""
    with tempfile.TemporaryDirectory(prefix="amalgam-parity-") as folder:
        rows = _run(Path(folder))
    PAGE.write_text(render(rows), encoding="utf-8")
    print(render(rows))
    unexpected = [
        f"{row.case.method} ({row.case.variant}), {row.case.oracle}" for row in rows if not row.is_as_expected
    ]
    if unexpected:
        print("Not as expected: " + "; ".join(unexpected))
    return 1 if unexpected else 0


def _run(folder: Path) -> list[Row]:
    base, models = write_inputs(folder / "inputs")
    opened = ours.open_checkpoint(base), [ours.open_checkpoint(model) for model in models]
    given = write_given_statistics(folder / "inputs")
    rows: list[Row] = []
    for tool in ("mergekit", "fusion-bench"):
        cases = find_cases(tool, "checkpoints")
        statistics = [given.get(case.statistics, []) for case in cases]
        theirs = _merge_with(tool, cases, [base, *models], statistics, folder / tool)
        for index, (case, own, other) in enumerate(zip(cases, statistics, theirs, strict=True)):
            rows.append(compare(case, ours.merge(case, *opened, folder / f"ours-{tool}-{index}", own), other))
    deep = write_deep_inputs(folder / "deep-inputs")
    rows += _run_documents(deep, folder) + _compare_llamas(deep, folder / "llamas")
    return rows + compare_adapters("fusion-bench", folder / "aligned") + compare_adapters("peft", folder / "peft")


def _run_documents(inputs: Mapping[str, Path], folder: Path) -> list[Row]:
    return [
        compare(
            Case(one.method, f"as [{one.name}]({DOCUMENTS_URL}/{one.name})", "mergekit", one.call, differs=one.differs),
            dict(one.ours),
            dict(one.theirs),
        )
        for one in merge_documents(find_documents(), inputs, folder / "documents")
    ]


def _compare_llamas(inputs: Mapping[str, Path], folder: Path) -> list[Row]:
    stacked = find_cases("fusion-bench", "llamas")
    folder.mkdir()
    orders = [llama_runs.order_stack(inputs, case, folder / f"{at}.safetensors") for at, case in enumerate(stacked)]
    theirs = _ask("fusion-bench", orders, folder)
    return [
        *(
            compare(case, llama_runs.stack(inputs, case, folder / f"stacked-{at}"), other)
            for at, (case, other) in enumerate(zip(stacked, theirs, strict=True))
        ),
        *(
            compare(case, *llama_runs.extract(inputs, case, folder / f"extracted-{at}"))
            for at, case in enumerate(find_cases("mergekit", "llamas"))
        ),
    ]


def compare_adapters(tool: str, folder: Path) -> list[Row]:
    """Return the comparisons of adapters with one tool: the same merges, and what we wrote loaded by it."""
    inputs = adapters.write_inputs(folder / "inputs")
    cases = find_cases(tool, None if tool == "peft" else "adapters")
    made = [adapters.merge(case, inputs, folder / f"ours-{index}") for index, case in enumerate(cases)]
    orders = [
        adapters.order(case, inputs, result, folder / f"{index}.safetensors")
        for index, (case, (_, result)) in enumerate(zip(cases, made, strict=True))
    ]
    theirs = _ask(tool, orders, folder)
    return [
        compare(case, *pair_outputs(mine, other)) for case, (mine, _), other in zip(cases, made, theirs, strict=True)
    ]


def pair_outputs(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return both sides with the outputs of the model: theirs with the adapter, ours with the dense weights."""
    outputs = theirs.pop("ours.outputs", None)
    return (mine if outputs is None else mine | {"outputs": outputs}), theirs


def _merge_with(
    tool: str,
    cases: Sequence[Case],
    inputs: Sequence[Path],
    statistics: Sequence[Sequence[Path]],
    folder: Path,
) -> list[dict[str, Tensor]]:
    folder.mkdir()
    outputs = [folder / f"{index}.safetensors" for index in range(len(cases))]
    orders = [
        {
            "call": case.call,
            "is_based": case.is_based,
            "inputs": [str(path / "model.safetensors") for path in inputs],
            "output": str(output),
            "parameters": case.oracle_parameters,
            "weights": case.weights,
            "task": case.task,
            "statistics": [str(path) for path in given],
        }
        for case, output, given in zip(cases, outputs, statistics, strict=True)
    ]
    return _ask(tool, orders, folder)


def _ask(tool: str, orders: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Tensor]]:
    python = prepare(tool)
    (folder / "cases.json").write_text(json.dumps(orders), encoding="utf-8")
    script = Path(__file__).with_name(SCRIPTS[tool])
    print(f"merging {len(orders)} cases with {tool}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    subprocess.run([python, script, folder / "cases.json"], check=True, env=environment, stdout=subprocess.DEVNULL)
    return [load_file(order["output"]) for order in orders]


def compare(case: Case, mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> Row:
    """Return how far the tensors that the other tool gives are from ours."""
    names = [name for name in sorted(theirs) if name not in case.left_out]
    differences = [(mine[name].double() - theirs[name].double()).abs().flatten() for name in names]
    difference = torch.cat(differences)
    return Row(case, len(names), int((difference > case.tolerance).sum()), float(difference.max()))


def render(rows: Sequence[Row]) -> str:
    """Return the page."""
    head = (
        "# Parity with other implementations\n\n"
        "Written by `make parity`; do not edit. Our pipeline and, in environments of their own, "
        f"{', '.join(REQUIREMENTS.values())}\n"
        f"merge the same float32 checkpoints (seed {SEED}: 2-D, 1-D, 0-D and 4-D tensors, a tied head, integers;\n"
        "no two magnitudes alike), all in float32. Rows that name a document are read by mergekit and by us, and\n"
        "merge a small Llama of three layers, as do `passthrough` and `lora_extract` where they are not loaded.\n"
        "Rows with peft merge adapters on one module of every kind; what is loaded is run as well, with the\n"
        "adapter and with our dense weights. `knots` is compared on the dense models that the adapters make,\n"
        "`linearized_lora` by the outputs of the model that fusion-bench expands. Merges that look at data are given\n"
        "the same statistics.\n\n"
        f"Equal means: no entry differs by more than {TOLERANCE:g}. The largest weights are near 0.25, so that is\n"
        f"about their last bit. Within {FLOAT32_SVD:g}, where the other tool finds singular vectors in float32.\n\n"
        "| method | setting | compared with | tensors | entries that differ | largest difference | result |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    lines = [
        f"| `{row.case.method}` | {row.case.variant} | {row.case.oracle} `{row.case.call}` | {row.n_tensors} "
        f"| {row.n_different} | {row.largest:.1e} | {_verdict(row)} |\n"
        for row in rows
    ]
    return head + "".join(lines) + _render_rest({row.case.method for row in rows})


def _render_rest(compared: set[str]) -> str:
    rest = [card.name for card in load_catalog().methods if card.name not in compared]
    lines = [f"- `{name}`: {REASONS.get(name, 'no case yet')}\n" for name in rest]
    lines += [f"- {name}: {why}\n" for name, why in STEPS.items()]
    return "\nNot compared:\n\n" + "".join(lines)


def _verdict(row: Row) -> str:
    if not row.is_as_expected:
        return "**not as expected**"
    if row.case.differs:
        return f"differs: {row.case.differs}"
    return "equal" if row.case.tolerance == TOLERANCE else f"equal within {row.case.tolerance:g}"


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__).parse_args()
    sys.exit(main())
