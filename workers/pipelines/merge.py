"""Merge: follow the plan, one run of elements at a time, from open input files to finished output files.

Values in, values out: nothing here knows of jobs, databases or stores. The bytes of the result depend on the recipe
alone: pieces are cut at will, computed on several threads, and written in the order of their offsets.
"""

import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from pydantic import JsonValue

from app.domain.adapters import as_dense
from app.domain.checkpoints import LocalCheckpoint, Manifest, distinct_tensors
from app.domain.errors import JobError, OutOfDisk
from app.domain.jobs import Progress
from app.domain.parts import sources_of
from app.domain.patches import measure_storage
from app.domain.plans import WHOLE_TENSORS_BYTES, MergePlan, known_ranks, piece_elements
from app.domain.recipes import Recipe
from workers.checkpoints import parallel
from workers.checkpoints.adapters import open_model, read_updates
from workers.checkpoints.memory import keep_freed_memory
from workers.checkpoints.reader import TensorReader
from workers.checkpoints.source import CheckpointSource, MergedTensor, Run
from workers.checkpoints.sums_file import SumsReader
from workers.contract import RecipeCode, StatisticRequest, know_no_updates
from workers.cuda import CudaCopies
from workers.learning_contract import Learn
from workers.pipelines import program
from workers.pipelines.additions import open_onto
from workers.pipelines.beside import open_beside
from workers.pipelines.group_reports import report_groups
from workers.pipelines.merge_files import OnWritten, complete, ignore, write_weights
from workers.pipelines.merge_steps import Inputs, Merger
from workers.pipelines.patching import label_tasks
from workers.pipelines.program import MergeProgram
from workers.pipelines.progress import ProgressMeter
from workers.transport import HOST, Staged, Transport


def merge_checkpoints(  # noqa: PLR0913 a recipe, what it names, and how to run it
    plan: MergePlan,
    code: RecipeCode,
    *,
    recipe: Recipe,
    base: LocalCheckpoint | None,
    models: Sequence[LocalCheckpoint],
    onto: LocalCheckpoint | None = None,
    output: Path,
    on_progress: Callable[[Progress], None],
    device: str = "cpu",
    threads: int | None = None,
    chunk_elements: int | None = None,
    learn: Learn | None = None,
    on_written: OnWritten = ignore,
) -> tuple[Manifest, dict[str, JsonValue]]:
    """Write the merged checkpoint into the empty folder `output`; return its manifest and a report.

    models: in the recipe's order; onto: the result that they are added to. device: as program.prepare says. threads,
        chunk_elements: None lets the engine choose; no result depends on them. learn: runs the method's learner; None:
        nothing is learned. on_written: as WeightsWriter's.
    Raises: OutOfDisk before or while writing; NotFinite naming the tensor; InputChanged; JobError for a device that is
        not there. On any error the weight files that were begun are removed.
    """
    check_room(plan.disk_bytes, output)
    with ExitStack() as stack:
        opened = open_merge(
            stack,
            plan,
            code,
            recipe=recipe,
            base=base,
            models=models,
            onto=onto,
            on_progress=on_progress,
            device=device,
            threads=threads,
            chunk_elements=chunk_elements,
        )
        told = Told(opened.meter)
        ranks = known_ranks(recipe, [model.manifest for model in models], None if base is None else base.manifest)
        are_factors_true = bool(ranks) and recipe.nan_policy == "fail"  # "zero" changes entries of what they make
        with opened.meter.silence() if learn is not None else nullcontext():
            ready = program.prepare(
                recipe,
                code,
                opened.source,
                transport=opened.transport,
                on_request=told.begin,
                learn=learn,
                update_ranks=ranks,
                read_updates=partial(read_updates, opened.inputs.models) if are_factors_true else know_no_updates,
            )
        opened.meter.expect(total_bytes(plan, opened.inputs))
        opened.meter.enter("merging")
        tasks = label_tasks(recipe) if code.method.patch is not None else ()
        merger = Merger(ready, opened.inputs, opened.source, opened.meter, tasks)
        written = write_weights(plan, merger, output, open_beside(plan, code.method, recipe, output, onto), on_written)
    opened.meter.enter("finishing")
    learned = [] if ready.learned is None else list(ready.learned.write(output))
    manifest, warnings = complete(plan, code.method, recipe, (base or models[0], models), written, learned, output)
    report: dict[str, JsonValue] = {
        **told.report(plan, recipe, ready),
        "warnings": list(warnings),
        **({"learned": ready.learned.report()} if ready.learned is not None else {}),
        **({"storage": measure_storage(manifest).model_dump(mode="json")} if manifest.patches else {}),
    }
    return manifest, report


@dataclass(frozen=True)
class OpenMerge:
    """The open inputs of a merge, and how they are read."""

    inputs: Inputs
    source: CheckpointSource
    meter: ProgressMeter
    transport: Transport


def open_merge(  # noqa: PLR0913 a recipe, what it names, and how to run it
    stack: ExitStack,
    plan: MergePlan,
    code: RecipeCode,
    *,
    recipe: Recipe,
    base: LocalCheckpoint | None,
    models: Sequence[LocalCheckpoint],
    onto: LocalCheckpoint | None = None,
    on_progress: Callable[[Progress], None],
    device: str = "cpu",
    threads: int | None = None,
    chunk_elements: int | None = None,
) -> OpenMerge:
    """Open what a merge reads; the stack closes it. Raises: as merge_checkpoints."""
    transport = open_transport(device) if code.uses_device else HOST
    keep_freed_memory()
    stack.enter_context(parallel.one_torch_thread())
    inputs = open_inputs(stack, plan, code, base=base, models=models)
    if onto is not None and code.method.patch is None:
        earlier = SumsReader(onto, recipe) if code.method.sums is not None else None
        inputs = replace(inputs, onto=open_onto(stack, plan, onto, earlier))
    meter = ProgressMeter(on_progress, total=total_bytes(plan, inputs, plan.n_passes))
    source = CheckpointSource(
        base=inputs.base,
        models=inputs.models,
        merged=inputs.merged,
        weights=[model.weight for model in recipe.models],
        piece_elements=chunk_elements or piece_elements(len(models)),
        threads=count_threads(plan, threads),
        nan_policy=recipe.nan_policy,
        on_bytes=meter.advance,
    )
    return OpenMerge(inputs, source, meter, transport)


class Told:
    """What a merge tells of itself: the statistics that were asked for, and what they found."""

    def __init__(self, meter: ProgressMeter) -> None:
        self._meter = meter
        self._requests: list[StatisticRequest] = []

    def begin(self, request: StatisticRequest) -> None:
        """Hear of a statistic that is about to be collected."""
        self._requests.append(request)
        self._meter.enter(f"statistics: {request.name}")

    def report(self, plan: MergePlan, recipe: Recipe, ready: MergeProgram) -> dict[str, JsonValue]:
        """Return what is known before the files are complete."""
        return {
            "parameters": recipe.parameters,
            "n_merged": plan.n_merged,
            "n_copied": plan.n_copied,
            "n_passes": 1 + sum(request.n_passes for request in self._requests),
            "statistics": [request.name for request in self._requests],
            "found": ready.report(),
            **report_groups([group.tensors for group in ready.groups]),
        }


def check_room(n_bytes: int, output: Path) -> None:
    """Refuse to write more than there is room for. Raises: OutOfDisk."""
    free = shutil.disk_usage(output).free
    if free < n_bytes:
        raise OutOfDisk(
            f"The result needs {n_bytes} bytes of disk and {free} are free; free some, or point the service's data "
            "folder at a larger disk, and retry the job."
        )


def open_transport(device: str) -> Transport:
    """Return the way to a device, once something could be put there."""
    try:
        opened = torch.empty(1, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise JobError(
            f"The device {device!r} cannot be used ({str(error).partition(chr(10))[0]}), expected one that torch has "
            "here; set AMALGAM_DEVICE to auto or cpu, and retry the job."
        ) from error
    return Staged(CudaCopies(opened)) if opened.type == "cuda" else HOST


def open_inputs(
    stack: ExitStack,
    plan: MergePlan,
    code: RecipeCode,
    *,
    base: LocalCheckpoint | None,
    models: Sequence[LocalCheckpoint],
) -> Inputs:
    """Open the checkpoints of a merge; the stack closes them."""
    base_reader = stack.enter_context(TensorReader(base)) if base is not None else None
    readers = [open_model(stack, model, base_reader) for model in models]
    reference = base_reader or readers[0]
    manifest = reference.checkpoint.manifest
    expected, found = distinct_tensors(manifest, [as_dense(model.manifest, manifest) for model in models])
    is_base_read = base is not None and code.uses_base
    sources = sorted({tensor.source for tensor in plan.tensors if tensor.copied_because is None})
    merged: dict[str, MergedTensor] = {}
    position = 0
    for name in sources:
        specs = tuple(model[name] for model in found)
        merged[name] = MergedTensor(
            name, expected[name].shape, position, expected[name] if is_base_read else None, specs
        )
        position += merged[name].n_elements
    stored = {tensor.name: tensor for tensor in manifest.tensors}
    own = [{tensor.name: tensor for tensor in model.manifest.tensors} for model in models]
    return Inputs(reference, base_reader if is_base_read else None, readers, stored, found, own, merged)


def count_threads(plan: MergePlan, threads: int | None) -> int:
    """Return how many runs may be in flight; whole tensors, and what is made of them, are large: none waits for a disk.

    threads: cores to keep busy; None: all of this process.
    """
    if not plan.tensor_bytes:
        return parallel.n_threads(threads)
    return max(1, min(threads or parallel.n_cores(), WHOLE_TENSORS_BYTES // plan.tensor_bytes))


def total_bytes(plan: MergePlan, inputs: Inputs, n_passes: int = 1) -> int:
    """Return how many bytes of input are read for the tensors of a plan."""
    copied = sum(tensor.end - tensor.begin for tensor in plan.tensors if tensor.copied_because is not None)
    return merged_bytes(inputs, sources_of(plan.tensors)) * n_passes + copied


def merged_bytes(inputs: Inputs, names: Collection[str]) -> int:
    """Return how many bytes some tensors of the merge set are in all inputs together."""
    tensors = [inputs.merged[name] for name in names]
    return sum(Run(tensor, 0, tensor.n_elements).n_bytes for tensor in tensors)
