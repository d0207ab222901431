"""The job process: reads its work order, runs the pipeline, reports progress, and says one last word.

Reached by its name only, in a warm process (workers/forkserver.py). It knows no database, no store and no queue.
"""

import errno
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import JsonValue, TypeAdapter

from app.domain.adapter_sets import extracts_adapter, writes_adapter
from app.domain.catalog import load_catalog
from app.domain.checkpoints import Value
from app.domain.errors import AmalgamError, JobInternal, OutOfDisk, OutOfMemory
from app.domain.jobs import Progress
from app.domain.sweeps import MeasuredPoint
from app.domain.work import (
    AnalyzeWork,
    CheckpointOutcome,
    EvaluateOutcome,
    EvaluateWork,
    FinetuneWork,
    ImportOutcome,
    ImportWork,
    JoinWork,
    MaterializeOutcome,
    MaterializeWork,
    MergeWork,
    Outcome,
    PartWork,
    PointReport,
    ProgressReport,
    Report,
    SweepWork,
    Work,
    WorkFailed,
    WorkSucceeded,
    WrittenReport,
)

REPORT_SECONDS = 0.1
REPORT_BYTES = 1 << 23  # written, between two reports of it
REPORTS: TypeAdapter[Report] = TypeAdapter(Report)
OnProgress = Callable[[Progress], None]
OnPoint = Callable[[MeasuredPoint], None]
OnWritten = Callable[[str, int], None]


class WorkOrder(Value):
    """What a job process is told."""

    work: Work
    device: str = "cpu"
    threads: int = 1


def warm_up() -> str | None:
    """Make the fused kernels ready, and check that the catalog the API offers is the one of these files."""
    import_module("workers.numerics.fused").load()
    if import_module("workers.catalog").find_cards() == load_catalog().methods:
        return None
    return "The merge methods differ from app/domain/catalog.json. Run `make catalog`, or install one release only."


def run(order_path: Path, reports: int) -> None:
    """Do the work of an order; progress and the last word go to the descriptor as JSON lines."""
    reporter = Reporter(reports)
    try:
        order = WorkOrder.model_validate_json(order_path.read_bytes())
        order = order.model_copy(update={"device": _device(order.device)})
        _limit_threads(order.threads)
        outcome = perform(order, reporter.progress, reporter.point, reporter.written)
        reporter.say(WorkSucceeded(outcome=outcome, stages=reporter.stages()))
    except Exception as error:  # noqa: BLE001 (the last word of a job that failed, whatever the reason)
        reporter.say(WorkFailed(problem=_stored(to_problem(error))))


def perform(
    order: WorkOrder,
    on_progress: OnProgress,
    on_point: OnPoint = lambda _: None,
    on_written: OnWritten = lambda _path, _n_bytes: None,
) -> Outcome:
    """Run the pipeline of a work order.

    on_point hears of each point that a sweep has measured, on_written how far a merge has written its weight files.
    """
    if isinstance(order.work, SweepWork):
        return _sweep(order.work, order, on_progress, on_point)
    if isinstance(order.work, MergeWork):
        return _merge(order.work, order, on_progress, on_written)
    if isinstance(order.work, PartWork):
        return _part(order.work, order, on_progress, on_written)
    return PERFORMERS[type(order.work)](order.work, order, on_progress)


class Reporter:
    """Writes reports, progress at most ten times a second, and keeps the time that each stage took."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._stages: list[tuple[str, float]] = []
        self._stage = ""
        self._entered_at = time.monotonic()
        self._said_at = 0.0
        self._file = ""  # that is being written,
        self._n_written = self._n_told = 0  # and how far; what was told of it

    def progress(self, progress: Progress) -> None:
        """Report progress; a new stage is always reported."""
        now = time.monotonic()
        with self._lock:
            is_new_stage = progress.stage != self._stage
            if is_new_stage:
                self._enter(progress.stage, now)
            if not is_new_stage and now - self._said_at < REPORT_SECONDS:
                return
            self._said_at = now
            self._write(ProgressReport(progress=progress))

    def point(self, point: MeasuredPoint) -> None:
        """Report a point that a sweep has measured; none is left out."""
        with self._lock:
            self._write(PointReport(point=point))

    def written(self, path: str, n_bytes: int) -> None:
        """Report how far a file is written, at steps, and all of it once another one follows; the last is published."""
        with self._lock:
            if path != self._file:
                self._tell_written()
                self._file, self._n_told = path, 0
            self._n_written = n_bytes
            if n_bytes - self._n_told >= REPORT_BYTES:
                self._tell_written()

    def say(self, word: WorkSucceeded | WorkFailed) -> None:
        """Say the last word."""
        with self._lock:
            self._write(word)

    def stages(self) -> tuple[tuple[str, float], ...]:
        """Return the stages so far with their seconds."""
        with self._lock:
            self._enter("", time.monotonic())
            return tuple(self._stages)

    def _enter(self, stage: str, now: float) -> None:
        if self._stage:
            self._stages.append((self._stage, now - self._entered_at))
        self._stage, self._entered_at = stage, now

    def _tell_written(self) -> None:
        if self._n_written > self._n_told:
            self._n_told = self._n_written
            self._write(WrittenReport(path=self._file, n_bytes=self._n_written))

    def _write(self, report: Report) -> None:
        data = memoryview(REPORTS.dump_json(report) + b"\n")
        while data:
            data = data[os.write(self._descriptor, data) :]


# ── the kinds of work; pipelines are imported when first needed, which is while the process is warmed up ──────────────


def _import(work: ImportWork, order: WorkOrder, on_progress: OnProgress) -> Outcome:
    importing = import_module("workers.pipelines.importing")
    return ImportOutcome(manifest=importing.import_checkpoint(work.source, on_progress, threads=order.threads))


def _merge(
    work: MergeWork,
    order: WorkOrder,
    on_progress: OnProgress,
    on_written: OnWritten = lambda _path, _n_bytes: None,
    kept: Any = None,  # KeptStatistics of a sweep
) -> CheckpointOutcome:
    if writes_adapter(work.recipe, load_catalog().method(work.recipe.method)):
        return _merge_adapters(work, order, on_progress)
    merge = import_module("workers.pipelines.merge")
    plan, code = _plan(work)
    learn, on_progress = _learner(work, order, on_progress, kept)
    manifest, report = merge.merge_checkpoints(
        plan,
        code,
        recipe=work.recipe,
        base=work.base_model,
        models=work.models,
        onto=work.onto,
        output=work.output,
        on_progress=on_progress,
        device=order.device,
        threads=order.threads,
        learn=learn,
        on_written=on_written,
    )
    return _outcome(manifest, report, learn)


def _learner(work: MergeWork, order: WorkOrder, on_progress: OnProgress, kept: Any = None) -> tuple[Any, OnProgress]:
    """Return a MergeLearner, or None where nothing is learned, and what hears of the whole job's progress."""
    if not (work.learning or work.statistics):
        return None, on_progress
    catalog, learning = import_module("workers.catalog"), import_module("workers.pipelines.learning")
    evaluators = {one.task.spec.kind: catalog.load_evaluator(one.task.spec.kind) for one in work.learning}
    phases = learning.Phases(on_progress)
    return learning.MergeLearner(work, evaluators, phases, order.device, kept=kept), phases


def _outcome(manifest: Any, report: Any, learn: Any) -> CheckpointOutcome:  # as the pipelines give them
    """Return the outcome of a merge; its report tells what was looked at beside what was learned."""
    if learn is not None:
        report = {**report, "learned": {**learn.report(), **report["learned"]}}
    return CheckpointOutcome(manifest=manifest, report=report)


def _part(work: PartWork, order: WorkOrder, on_progress: OnProgress, on_written: OnWritten) -> Outcome:
    parts = import_module("workers.pipelines.parts")
    plan, code = _plan(work.merge)
    outcome: Outcome = parts.merge_part(
        plan,
        code,
        work,
        on_progress=on_progress,
        device=order.device,
        threads=order.threads,
        on_written=on_written,
    )
    return outcome


def _join(work: JoinWork, order: WorkOrder, on_progress: OnProgress) -> CheckpointOutcome:
    parts = import_module("workers.pipelines.parts")
    plan, code = _plan(work.merge)
    manifest, report = parts.join_parts(plan, code, work, on_progress=on_progress)
    return CheckpointOutcome(manifest=manifest, report=report)


def _plan(work: MergeWork) -> tuple[Any, Any]:  # a MergePlan, and a RecipeCode of the workers' contract
    planning = import_module("app.domain.planning")
    code = import_module("workers.catalog").load_recipe(work.recipe)
    base = work.base_model.manifest if work.base_model is not None else None
    manifests = [model.manifest for model in work.models]
    return planning.plan_merge(work.recipe, base, manifests, code.method.card, code.cards_beside), code


def _merge_adapters(work: MergeWork, order: WorkOrder, on_progress: OnProgress) -> CheckpointOutcome:
    planning = import_module("app.domain.planning")
    code = import_module("workers.catalog").load_adapter_recipe(work.recipe)
    base = work.base_model.manifest if work.base_model is not None else None
    manifests = [model.manifest for model in work.models]
    plan = planning.plan_merge(work.recipe, base, manifests, code.method.card)
    name = "lora_extraction" if extracts_adapter(code.method.card) else "adapter_merge"
    pipeline = import_module(f"workers.pipelines.{name}")
    learn, on_progress = _learner(work, order, on_progress)
    manifest, report = pipeline.merge_adapters(
        plan,
        code,
        recipe=work.recipe,
        base=work.base_model,
        models=work.models,
        output=work.output,
        on_progress=on_progress,
        **({} if learn is None else {"learn": learn.on_factors}),
    )
    return _outcome(manifest, report, learn)


def _materialize(work: MaterializeWork, order: WorkOrder, on_progress: OnProgress) -> Outcome:
    materialize = import_module("workers.pipelines.materialize")
    folders = {task: work.output / str(place) for place, task in enumerate(work.tasks)}
    for folder in folders.values():
        folder.mkdir()
    return MaterializeOutcome(manifests=materialize.materialize_all(work.checkpoint, folders, on_progress))


def _evaluate(work: EvaluateWork, order: WorkOrder, on_progress: OnProgress) -> Outcome:
    catalog = import_module("workers.catalog")
    evaluate = import_module("workers.pipelines.evaluate")
    evaluators = {task.spec.kind: catalog.load_evaluator(task.spec.kind) for task in work.tasks}
    return EvaluateOutcome(measurements=evaluate.evaluate(work, evaluators, on_progress, device=order.device))


def _finetune(work: FinetuneWork, order: WorkOrder, on_progress: OnProgress) -> Outcome:
    catalog = import_module("workers.catalog")
    finetune = import_module("workers.pipelines.finetune")
    manifest, report, measurements = finetune.finetune(
        work,
        catalog.load_evaluator(work.task.spec.kind),
        catalog.load_finetuner(work.technique),
        on_progress,
        device=order.device,
    )
    return CheckpointOutcome(manifest=manifest, report=report, measurements=measurements)


def _analyze(work: AnalyzeWork, order: WorkOrder, on_progress: OnProgress) -> Outcome:
    analysis = import_module("workers.catalog").load_analysis(work.analysis)  # brings matplotlib, which no merge needs
    pipeline = import_module("workers.pipelines.analyze")
    bench = _open_bench(work, order, on_progress) if work.tasks else None
    outcome: Outcome = pipeline.analyze(
        work,
        analysis,
        on_progress,
        threads=order.threads,
        bench=bench,
        load_transform=import_module("workers.catalog").load_transform,
    )
    return outcome


def _open_bench(work: AnalyzeWork, order: WorkOrder, on_progress: OnProgress) -> Any:  # an analysis' Bench
    catalog = import_module("workers.catalog")
    bench = import_module("workers.pipelines.bench")
    workshop = bench.Workshop(
        evaluators={task.spec.kind: catalog.load_evaluator(task.spec.kind) for task in work.tasks},
        load_code=catalog.load_recipe,
        device=order.device,
        threads=order.threads,
    )
    return bench.MemoryBench(work, workshop, on_progress)


def _sweep(work: SweepWork, order: WorkOrder, on_progress: OnProgress, on_point: OnPoint) -> Outcome:
    catalog = import_module("workers.catalog")
    pipeline = import_module("workers.pipelines.sweep")
    kept = import_module("workers.learning.kept").KeptStatistics(work.scratch / "statistics")
    workshop = pipeline.Workshop(
        evaluators={task.spec.kind: catalog.load_evaluator(task.spec.kind) for task in work.tasks},
        load_code=catalog.load_recipe,
        merge=lambda merge, report: _merge(merge, order, report, kept=kept),
        device=order.device,
        threads=order.threads,
    )
    outcome: Outcome = pipeline.sweep(work, workshop, on_progress, on_point)
    return outcome


# Any: each function takes the work that its key says
PERFORMERS: Mapping[type[Any], Callable[[Any, WorkOrder, OnProgress], Outcome]] = {
    ImportWork: _import,
    JoinWork: _join,
    MaterializeWork: _materialize,
    EvaluateWork: _evaluate,
    FinetuneWork: _finetune,
    AnalyzeWork: _analyze,
}


def _device(name: str) -> str:
    """Return the device to use; `auto` is the first GPU, if there is one. Asked after the fork, never before."""
    if name != "auto":
        return name
    torch = sys.modules.get("torch")
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"


# ── what went wrong ───────────────────────────────────────────────────────────────────────────────────────────────────


def to_problem(error: Exception) -> AmalgamError:
    """Return the problem that an exception is; the traceback of one we did not foresee goes to the log."""
    if isinstance(error, AmalgamError):
        return error
    if _is_out_of_memory(error):
        said = str(error).partition("\n")[0] or type(error).__name__
        return OutOfMemory(
            f"The job process asked for more memory than it may have ({said})."
            " Give the worker more memory, run fewer jobs at a time (AMALGAM_CONCURRENCY), or use smaller batches."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfDisk("The disk became full while the job was writing. Free space, then retry the job.")
    traceback.print_exception(error, file=sys.stderr)
    return JobInternal(
        f"The job failed with {type(error).__name__}, which it should not. The traceback is in the worker's log; please"
        " report it with the job's recipe."
    )


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if type(error).__name__ == "OutOfMemoryError":  # torch's, on a GPU
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text)


def _limit_threads(threads: int) -> None:
    torch = sys.modules.get("torch")  # imported while the process was warmed up, if at all
    if torch is not None:
        torch.set_num_threads(threads)


def _stored(problem: AmalgamError) -> dict[str, JsonValue]:
    document: dict[str, JsonValue] = {}
    document.update(problem.to_json())  # type: ignore[arg-type]  # JSON by construction
    return document
