"""Merge: follow the plan, one run of elements at a time, from open input files to finished output files.

Values in, values out: nothing here knows of jobs, databases or stores. The bytes of the result depend on the recipe
alone: pieces are cut at will, computed on several threads, and written in the order of their offsets.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import JsonValue

from app.domain.adapters import as_dense
from app.domain.catalog import Granularity, coarsest
from app.domain.checkpoints import (
    CheckpointKind,
    FileEntry,
    LocalCheckpoint,
    Manifest,
    digest_weights,
    distinct_tensors,
)
from app.domain.errors import JobError, OutOfDisk
from app.domain.jobs import Progress
from app.domain.patches import measure_storage
from app.domain.plans import MergePlan, piece_elements
from app.domain.recipes import Recipe
from workers.checkpoints import config, parallel
from workers.checkpoints.adapters import open_model
from workers.checkpoints.companions import copy_companions, write_file, write_index
from workers.checkpoints.layer_config import read_configs, with_layers
from workers.checkpoints.memory import keep_freed_memory
from workers.checkpoints.reader import TensorReader
from workers.checkpoints.source import CheckpointSource, MergedTensor, Run
from workers.checkpoints.sums_file import SumsReader
from workers.checkpoints.writer import WeightsWriter
from workers.contract import MergeMethod, RecipeCode, StatisticRequest
from workers.learning_contract import Learn
from workers.pipelines import program
from workers.pipelines.additions import open_onto
from workers.pipelines.beside import FilesBeside, open_beside
from workers.pipelines.merge_steps import Inputs, Merger, Produced, Step, cut_steps, produce
from workers.pipelines.model_card import write_model_card
from workers.pipelines.patching import PatchesWritten, label_tasks
from workers.pipelines.program import MergeProgram
from workers.pipelines.progress import ProgressMeter

MAX_REPORTED = 1000  # names of tensors in one group of the report
WHOLE_TENSORS_BYTES = 1 << 30  # of float32 inputs in flight, for methods that see whole tensors


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
) -> tuple[Manifest, dict[str, JsonValue]]:
    """Write the merged checkpoint into the empty folder `output`; return its manifest and a report.

    models: in the recipe's order; onto: the result that they are added to. threads, chunk_elements: None lets the
        engine choose; no result depends on them. learn: runs the method's learner; None: nothing is learned.
    Raises: OutOfDisk before or while writing; NotFinite naming the tensor; InputChanged; JobError for a device that is
        not there. On any error the weight files that were begun are removed.
    """
    _check_room(plan, output)
    on_device = open_device(device)
    keep_freed_memory()
    reference = base or models[0]
    with ExitStack() as stack:
        stack.enter_context(parallel.one_torch_thread())
        inputs = open_inputs(stack, plan, code, base=base, models=models)
        if onto is not None and code.method.patch is None:
            earlier = SumsReader(onto, recipe) if code.method.sums is not None else None
            inputs = replace(inputs, onto=open_onto(stack, plan, onto, earlier))
        granularity = coarsest([card.granularity for card in (code.method.card, *code.cards_beside)])
        meter = ProgressMeter(on_progress, total=_total_bytes(plan, inputs, plan.n_passes))
        source = CheckpointSource(
            base=inputs.base,
            models=inputs.models,
            merged=inputs.merged,
            weights=[model.weight for model in recipe.models],
            piece_elements=chunk_elements or piece_elements(len(models)),
            threads=count_threads(granularity, inputs, parallel.n_threads(threads)),
            nan_policy=recipe.nan_policy,
            on_bytes=meter.advance,
        )
        requests: list[StatisticRequest] = []

        def begin(request: StatisticRequest) -> None:
            requests.append(request)
            meter.enter(f"statistics: {request.name}")

        with meter.silence() if learn is not None else nullcontext():
            ready = program.prepare(recipe, code, source, device=on_device, on_request=begin, learn=learn)
        meter.enter("merging")
        meter.expect(_total_bytes(plan, inputs, 1))
        tasks = label_tasks(recipe) if code.method.patch is not None else ()
        merger = Merger(ready, inputs, source, meter, tasks)
        written = _write_weights(plan, merger, output, open_beside(code.method, recipe, output, onto))
    meter.enter("finishing")
    manifest = _manifest(plan, reference, written)
    companions, more = _write_companions(plan, code.method, recipe, (reference, models), manifest, output)
    learned = [] if ready.learned is None else list(ready.learned.write(output))
    manifest = _complete(manifest, [*companions, *learned], written, output)
    warnings = [*plan.warnings, *_warn_of_differing(written.differing), *written.beside.warnings, *more]
    report: dict[str, JsonValue] = {
        "parameters": recipe.parameters,
        "n_merged": plan.n_merged,
        "n_copied": plan.n_copied,
        "n_passes": 1 + sum(request.n_passes for request in requests),
        "statistics": [request.name for request in requests],
        "warnings": list(warnings),
        "found": ready.report(),
        **_report_groups(ready),
        **({"learned": ready.learned.report()} if ready.learned is not None else {}),
        **({"storage": measure_storage(manifest).model_dump(mode="json")} if manifest.patches else {}),
    }
    return manifest, report


def _check_room(plan: MergePlan, output: Path) -> None:
    free = shutil.disk_usage(output).free
    if free < plan.disk_bytes:
        raise OutOfDisk(
            f"The result needs {plan.disk_bytes} bytes of disk and {free} are free; free some, or point the service's "
            "data folder at a larger disk, and retry the job."
        )


def open_device(device: str) -> torch.device:
    """Return the device once something could be put there."""
    try:
        return torch.empty(1, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise JobError(
            f"The device {device!r} cannot be used ({str(error).partition(chr(10))[0]}), expected one that torch has "
            "here; set AMALGAM_DEVICE to auto or cpu, and retry the job."
        ) from error


def _report_groups(ready: MergeProgram) -> dict[str, JsonValue]:
    """Return what holds for each group of tensors, where there are several, or for each model, where they differ."""
    if len(ready.groups) <= 1 and not any(group.tensors.of_models for group in ready.groups):
        return {}
    groups: list[JsonValue] = [
        {
            "parameters": group.parameters,
            "weights": list(group.tensors.weights),
            **({"models": list(group.tensors.of_models)} if group.tensors.of_models else {}),
            "n_tensors": len(group.tensors.names),
            "tensors": list(group.tensors.names[:MAX_REPORTED]),
        }
        for group in ready.groups
    ]
    return {"groups": groups}


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


def count_threads(granularity: Granularity, inputs: Inputs, threads: int) -> int:
    """Return how many runs may be in flight: whole tensors are large, and each thread holds one of every model."""
    if granularity in ("element", "row"):
        return threads
    largest = max(tensor.n_elements for tensor in inputs.merged.values())
    return max(1, min(threads, WHOLE_TENSORS_BYTES // max(1, 4 * largest * (1 + len(inputs.models)))))


def _total_bytes(plan: MergePlan, inputs: Inputs, n_passes: int) -> int:
    merged = sum(Run(tensor, 0, tensor.n_elements).n_bytes for tensor in inputs.merged.values())
    copied = sum(tensor.end - tensor.begin for tensor in plan.tensors if tensor.copied_because is not None)
    return merged * n_passes + copied


@dataclass(frozen=True)
class _Written:
    """The weight files, and what lies beside them: patches, or sums."""

    entries: tuple[FileEntry, ...]
    blake3_of: Mapping[str, str]  # tensor -> of its bytes
    weights_digest: str
    differing: Sequence[str]  # integer tensors that differ between the models, where one had to be taken
    beside: PatchesWritten


def _write_weights(plan: MergePlan, merger: Merger, output: Path, beside: FilesBeside) -> _Written:
    """Write every step in the order of offsets, then the patches or sums."""
    writer = WeightsWriter(plan, output)
    differing: list[str] = []
    try:
        steps = (step for target in plan.tensors for step in cut_steps(target, merger))
        produced = parallel.map_in_order(
            lambda step: _produce_and_place(step, merger, writer), steps, threads=merger.source.threads
        )
        with closing(produced):  # no thread writes any more when it is left
            for step, made in produced:
                writer.digest(step.target, made.content)
                beside.write(step.target, made)
                if made.differs and not merger.patched and step.target.name not in differing:
                    differing.append(step.target.name)
        entries, blake3_of = writer.finish()
        digest = digest_weights([tensor.spec for tensor in plan.tensors], blake3_of)
        files = beside.finish(plan, merger, digest)
    except BaseException:
        writer.abandon()
        beside.abandon()
        raise
    return _Written(tuple(entries), blake3_of, digest, differing, files)


def _produce_and_place(step: Step, merger: Merger, writer: WeightsWriter) -> tuple[Step, Produced]:
    made = produce(step, merger)
    writer.place(step.target, step.offset, made.content)
    return step, made


def _warn_of_differing(names: Sequence[str]) -> list[str]:
    return [f"Integer tensor {name} differs between the inputs; the reference's values were kept." for name in names]


def _write_companions(  # noqa: PLR0913 all that the card tells
    plan: MergePlan,
    method: MergeMethod,
    recipe: Recipe,
    inputs: tuple[LocalCheckpoint, Sequence[LocalCheckpoint]],
    manifest: Manifest,
    output: Path,
) -> tuple[list[FileEntry], list[str]]:
    """Write the files beside the weights; return them, and warnings."""
    reference, models = inputs
    warnings: list[str] = []

    def change_config(content: bytes) -> bytes:
        if not plan.layers:
            return content
        changed, found = with_layers(content, plan.layers, plan.n_layers, read_configs(models))
        warnings.extend(found)
        return changed

    entries = list(copy_companions(reference, output, dtype=recipe.output_dtype, change_config=change_config))
    document = json.dumps(recipe.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False)
    entries.append(write_file(output, "recipe.json", document.encode() + b"\n"))
    entries.append(write_file(output, "README.md", write_model_card(recipe, method.card, plan, manifest).encode()))
    entries += write_index(plan, output)
    return entries, warnings


def _manifest(plan: MergePlan, reference: LocalCheckpoint, written: _Written) -> Manifest:
    """Return the manifest as far as the weights decide it."""
    return Manifest(
        kind=CheckpointKind.MULTITASK if written.beside.patches else CheckpointKind.DENSE,
        files=(*written.entries, *written.beside.entries),
        tensors=tuple(sorted((tensor.spec for tensor in plan.tensors), key=lambda tensor: tensor.name)),
        weights_digest=written.weights_digest,
        architecture=reference.manifest.architecture,
        model_type=reference.manifest.model_type,
        vocab_size=reference.manifest.vocab_size,
        patches=written.beside.patches,
        patch_base=written.beside.base_file,
    )


def _complete(manifest: Manifest, companions: Sequence[FileEntry], written: _Written, output: Path) -> Manifest:
    """Return the manifest with the files beside the weights, and what the config among them says."""
    names = [tensor.name for tensor in manifest.tensors]
    return manifest.model_copy(
        update={
            "files": tuple(sorted((*manifest.files, *companions), key=lambda entry: entry.path)),
            "tied": config.find_tied(config.read_config(output), names, written.blake3_of),
        }
    )
