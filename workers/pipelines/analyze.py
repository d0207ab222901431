"""Analyze models without changing them: data as JSON, and a figure of it as SVG and PNG, in the work's output folder.

The heading of a report (what was analyzed, how) is made here, its data by the analysis; see docs/analyses.md.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from app.domain.adapters import as_dense
from app.domain.checkpoints import (
    MERGEABLE_DTYPES,
    FileEntry,
    LocalCheckpoint,
    check_mergeable,
    distinct_tensors,
)
from app.domain.errors import IncompatibleCheckpoints, JobInternal
from app.domain.jobs import Progress
from app.domain.parameters import NestedStep, Parameters
from app.domain.work import AnalyzeOutcome, AnalyzeWork
from workers.analysis_contract import Analysis, Bench, Found, Names, summarize
from workers.checkpoints import parallel
from workers.checkpoints.adapters import open_model
from workers.checkpoints.companions import write_file
from workers.checkpoints.reader import TensorReader
from workers.checkpoints.source import CheckpointSource, MergedTensor, Run
from workers.contract import PieceSource, Transform
from workers.figures import style
from workers.pipelines import program
from workers.pipelines.progress import ProgressMeter

REPORT_FORMAT_VERSION = 2
DATA_FILE = "report.json"
SVG_FILE = "figure.svg"
PNG_FILE = "figure.png"

_PIECE_ELEMENTS = 1 << 18  # of one model: pieces of all models stay in the cache


def analyze(  # noqa: PLR0913 (what is looked at, and with what)
    work: AnalyzeWork,
    analysis: Analysis,
    on_progress: Callable[[Progress], None],
    *,
    threads: int | None = None,
    bench: Bench | None = None,
    load_transform: Callable[[str], Transform] | None = None,
) -> AnalyzeOutcome:
    """Write the report's data and figure into the work's output folder and return them.

    bench: of an analysis with tasks, over the work's models and tasks. load_transform: of one that takes any.

    Raises: IncompatibleCheckpoints naming a tensor; NotFinite; InputChanged; whatever the analysis raises.
    """
    parameters = analysis.parameters.model_validate(work.parameters)
    if bench is not None:
        found = analysis.examine(bench, parameters)
    else:
        steps = _list_steps(analysis, parameters, load_transform)
        n_passes = analysis.count_passes(parameters) * (2 if steps else 1) + sum(
            s.card.statistic_passes for s, _ in steps
        )
        with _open_source(work, on_progress, n_passes, parallel.n_threads(threads)) as source:
            if not analysis.card.steps:
                found = analysis.examine(source, parameters)
            else:
                found = analysis.examine(source, parameters, _look_through(work, steps, source))
    on_progress(Progress(stage="drawing", fraction=1.0))
    labels = work.labels or tuple(f"models[{index}]" for index in range(len(work.models)))
    names = Names(labels, tuple(task.spec.name for task in work.tasks))
    heading = _heading(work, analysis, names, parameters)
    files = (
        *_write_figure(work, analysis, found, names),
        write_file(work.output, DATA_FILE, _to_json({**heading, **found.model_dump(mode="json")})),
    )
    return AnalyzeOutcome(data={**heading, **summarize(found)}, files=files)


Steps = Sequence[tuple[Transform, Mapping[str, Any]]]  # each with its parameters, JSON values by name


def _list_steps(analysis: Analysis, parameters: Parameters, load_transform: Callable[[str], Transform] | None) -> Steps:
    """Return the transforms that the parameters name, with theirs."""
    named: list[NestedStep] = [step for name in analysis.card.steps for step in getattr(parameters, name)]
    if not named:
        return []
    if load_transform is None:
        raise JobInternal(f"{analysis.card.name} was given transforms and no way to load them; report this fault.")
    return [(load_transform(step.name), step.parameters) for step in named]


def _look_through(work: AnalyzeWork, steps: Steps, source: PieceSource) -> PieceSource | None:
    """Return the source through the transforms; None where there are none."""
    if not steps:
        return None
    keys = [model.manifest.weights_digest for model in work.models]
    return program.look_through(steps, source, model_keys=keys)


def _heading(work: AnalyzeWork, analysis: Analysis, names: Names, parameters: Parameters) -> Mapping[str, Any]:
    return {
        "format_version": REPORT_FORMAT_VERSION,
        "kind": analysis.card.name,
        "version": analysis.card.version,
        "base_model": work.base_model.manifest.digest,
        "models": [model.manifest.digest for model in work.models],
        "labels": list(names.models),
        "merged": None if work.merged is None else work.merged.checkpoint.manifest.digest,
        "parameters": parameters.model_dump(mode="json", exclude=_unused(work, analysis)),
        "tasks": [
            {"name": task.spec.name, "digest": task.spec.digest, "split": work.split, "metric": task.spec.metric}
            for task in work.tasks
        ],
    }


def _unused(work: AnalyzeWork, analysis: Analysis) -> set[str]:
    """Return the parameters that say how to merge, where the merge was there before."""
    return set() if work.merged is None else set(analysis.card.nested)


def _write_figure(work: AnalyzeWork, analysis: Analysis, found: Found, names: Names) -> Sequence[FileEntry]:
    with style.applied():
        figure = analysis.draw(found, names)
        title = analysis.card.title
        return (
            write_file(work.output, PNG_FILE, style.to_png(figure, title)),
            write_file(work.output, SVG_FILE, style.to_svg(figure, title)),
        )


def _to_json(document: Mapping[str, Any]) -> bytes:
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


@contextmanager
def _open_source(
    work: AnalyzeWork, on_progress: Callable[[Progress], None], n_passes: int, threads: int
) -> Iterator[CheckpointSource]:
    """Open the task vectors as a stream that reports the bytes read."""
    merged = _merge_set(work.base_model, work.models)
    total = sum(Run(tensor, 0, tensor.n_elements).n_bytes for tensor in merged.values())
    meter = ProgressMeter(on_progress, total=total * n_passes)
    meter.enter("comparing task vectors")
    with ExitStack() as stack:
        stack.enter_context(parallel.one_torch_thread())
        base = stack.enter_context(TensorReader(work.base_model))
        yield CheckpointSource(
            base=base,
            models=[open_model(stack, model, base) for model in work.models],
            merged=merged,
            weights=[1.0] * len(work.models),
            piece_elements=_PIECE_ELEMENTS,
            threads=threads,
            on_bytes=meter.advance,
        )


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
