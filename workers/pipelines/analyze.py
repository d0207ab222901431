"""Analyze models without changing them: the cosines of their task vectors, as data and as a figure.

Near zero the models moved the base model in unrelated directions and merge well; near one they did the same.
"""

import json
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from pydantic import JsonValue
from torch import Tensor

from app.domain.adapters import as_dense
from app.domain.checkpoints import (
    MERGEABLE_DTYPES,
    FileEntry,
    LocalCheckpoint,
    check_mergeable,
    distinct_tensors,
)
from app.domain.errors import IncompatibleCheckpoints
from app.domain.jobs import Progress
from app.domain.work import AnalyzeOutcome, AnalyzeWork
from workers.checkpoints import parallel
from workers.checkpoints.adapters import open_model
from workers.checkpoints.companions import write_file
from workers.checkpoints.reader import TensorReader
from workers.checkpoints.source import CheckpointSource, MergedTensor, Run
from workers.pipelines.heatmap import draw_heatmap
from workers.pipelines.progress import ProgressMeter
from workers.statistics import gram

REPORT_FORMAT_VERSION = 1
DATA_FILE = "report.json"
FIGURE_FILE = "cosines.svg"

_PIECE_ELEMENTS = 1 << 18  # of one model: pieces of all models stay in the cache


def analyze(
    work: AnalyzeWork, on_progress: Callable[[Progress], None], *, threads: int | None = None
) -> AnalyzeOutcome:
    """Write the report's data and figure into the work's output folder and return them.

    The cosines are those of the flattened floating-point tensors, accumulated in float64; a task vector of zero has
    none (null).

    Raises: IncompatibleCheckpoints naming a tensor; NotFinite; InputChanged.
    """
    merged = _merge_set(work.base_model, work.models)
    matrix = _gram_matrix(work, merged, on_progress, threads=parallel.n_threads(threads))
    labels = work.labels or tuple(f"models[{index}]" for index in range(len(work.models)))
    data = _data(work, merged, matrix, labels)
    cells = [[_number(value) for value in row] for row in gram.cosines(matrix)]
    figure = draw_heatmap("Cosines of task vectors", labels, cells)
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    files: Sequence[FileEntry] = (
        write_file(work.output, FIGURE_FILE, figure.encode()),
        write_file(work.output, DATA_FILE, f"{text}\n".encode()),
    )
    return AnalyzeOutcome(data=data, files=tuple(files))


def _merge_set(base_model: LocalCheckpoint, models: Sequence[LocalCheckpoint]) -> dict[str, MergedTensor]:
    manifests = [as_dense(model.manifest, base_model.manifest) for model in models]
    found = check_mergeable(base_model.manifest, manifests)
    blocking = [difference for difference in found.differences if difference.problem != "dtype"]
    if blocking:
        first = blocking[0]
        raise IncompatibleCheckpoints(
            f"models[{first.model}] does not have the base model's tensors: {first.name!r} is {first.problem} "
            f"({len(blocking)} differences). Name models that were fine-tuned from this base model."
        )
    expected, stored = distinct_tensors(base_model.manifest, manifests)
    merged: dict[str, MergedTensor] = {}
    position = 0
    for name in sorted(expected):
        specs = (expected[name], *(tensors[name] for tensors in stored))
        if all(spec.dtype in MERGEABLE_DTYPES for spec in specs):
            merged[name] = MergedTensor(name, specs[0].shape, position, specs[0], specs[1:])
            position += merged[name].n_elements
    return merged


def _gram_matrix(
    work: AnalyzeWork, merged: dict[str, MergedTensor], on_progress: Callable[[Progress], None], *, threads: int
) -> Tensor:
    total = sum(Run(tensor, 0, tensor.n_elements).n_bytes for tensor in merged.values())
    meter = ProgressMeter(on_progress, total=total)
    meter.enter("comparing task vectors")
    with ExitStack() as stack:
        stack.enter_context(parallel.one_torch_thread())
        base = stack.enter_context(TensorReader(work.base_model))
        source = CheckpointSource(
            base=base,
            models=[open_model(stack, model, base) for model in work.models],
            merged=merged,
            weights=[1.0] * len(work.models),
            piece_elements=_PIECE_ELEMENTS,
            threads=threads,
            on_bytes=meter.advance,
        )
        return gram.gram_matrix(source)


def _data(
    work: AnalyzeWork, merged: dict[str, MergedTensor], matrix: Tensor, labels: Sequence[str]
) -> dict[str, JsonValue]:
    found = gram.cosines(matrix)
    apart = ~torch.eye(len(found), dtype=torch.bool)
    others = found[apart][found[apart].isfinite()]
    return {
        "format_version": REPORT_FORMAT_VERSION,
        "kind": work.analysis,
        "base_model": work.base_model.manifest.digest,
        "models": [model.manifest.digest for model in work.models],
        "labels": list(labels),
        "norms": _numbers(matrix.diagonal().sqrt()),
        "cosines": [_numbers(row) for row in found],
        "mean_cosine": _number(others.mean()),
        "mean_absolute_cosine": _number(others.abs().mean()),
        "n_tensors": len(merged),
        "n_parameters": sum(tensor.n_elements for tensor in merged.values()),
    }


def _numbers(values: Tensor) -> list[JsonValue]:
    return [_number(value) for value in values]


def _number(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
