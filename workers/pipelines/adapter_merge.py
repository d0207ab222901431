"""Merge adapters into an adapter: read all factors, let the method make new ones, write a folder that PEFT loads.

Adapters are small, so all of them are in memory at once. What is computed of them: adapter_program.py.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor

from app.domain.adapter_sets import AdaptedModule, gather
from app.domain.adapters import LoraPart
from app.domain.checkpoints import (
    OUTPUT_DTYPES,
    CheckpointKind,
    FileEntry,
    LocalCheckpoint,
    Manifest,
    TensorSpec,
    digest_weights,
)
from app.domain.errors import NotFinite
from app.domain.jobs import Progress
from app.domain.plans import MergePlan
from app.domain.recipes import Recipe
from workers.adapter_contract import AdapterCode, AdapterMethod, ModuleUpdates, Update
from workers.checkpoints import hashing, parallel
from workers.checkpoints.adapter_writer import AdaptedOutput, AdapterOutput, config_of, write_adapter
from workers.checkpoints.companions import write_file
from workers.checkpoints.reader import TensorReader
from workers.contract import MergeMethod
from workers.patches import LowRank
from workers.pipelines.adapter_program import LearnOnFactors, MergedModules, merge_modules
from workers.pipelines.group_reports import report_groups
from workers.pipelines.model_card import write_model_card
from workers.pipelines.progress import ProgressMeter


def merge_adapters(  # noqa: PLR0913 a recipe, what it names, and how to run it
    plan: MergePlan,
    code: AdapterCode,
    *,
    recipe: Recipe,
    base: LocalCheckpoint,
    models: Sequence[LocalCheckpoint],
    output: Path,
    on_progress: Callable[[Progress], None],
    learn: LearnOnFactors | None = None,
) -> tuple[Manifest, dict[str, JsonValue]]:
    """Write the merged adapter into the empty folder `output`; return its manifest and a report.

    learn: runs the method's learner; None: nothing is learned.
    Raises: IncompatibleCheckpoints for adapters that the space cannot merge; NotFinite naming the tensor; InputChanged.
    """
    modules = gather(recipe, base.manifest, [model.manifest for model in models])
    meter = ProgressMeter(on_progress, total=plan.bytes_read)
    meter.enter("reading")
    with ExitStack() as stack:
        stack.enter_context(parallel.one_torch_thread())
        readers = [stack.enter_context(TensorReader(model)) for model in models]
        read = [_read_module(module, readers, recipe, meter) for module in modules]
        merged = merge_modules(code, recipe, read, learn, meter)
    meter.enter("finishing")
    made = _output(modules, merged.updates, models)
    return finish(made, plan, code.method, recipe=recipe, output=output, merged=merged)


def finish(  # noqa: PLR0913 what was made, by what, and where it goes
    made: AdapterOutput,
    plan: MergePlan,
    method: AdapterMethod | MergeMethod,
    *,
    recipe: Recipe,
    output: Path,
    merged: MergedModules,
) -> tuple[Manifest, dict[str, JsonValue]]:
    """Write an adapter with its recipe and its model card; return its manifest and the report."""
    _refuse_not_finite(made)
    entries, specs = write_adapter(made, output, dtype=OUTPUT_DTYPES[recipe.output_dtype or "float32"])
    document = json.dumps(recipe.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False)
    entries.append(write_file(output, "recipe.json", document.encode() + b"\n"))
    entries += [] if merged.learned is None else merged.learned.write(output)
    manifest = _manifest(made, entries, specs, output)
    entries.append(write_file(output, "README.md", write_model_card(recipe, method.card, plan, manifest).encode()))
    report: dict[str, JsonValue] = {
        "parameters": recipe.parameters,
        "adapter_space": recipe.adapter_space,
        "n_merged": len(made.modules),
        "n_copied": len(made.full),
        "n_passes": 1,
        "ranks": {one.module: one.a.shape[0] for one in made.modules},
        "warnings": list(plan.warnings),
        "found": dict(merged.found),
        **report_groups(merged.groups),
        **({} if merged.learned is None else {"learned": merged.learned.report()}),
    }
    files = tuple(sorted(entries, key=lambda entry: entry.path))
    return manifest.model_copy(update={"files": files}), report


# --- reading --------------------------------------------------------------------------------------------------------


def _read_module(
    module: AdaptedModule, readers: Sequence[TensorReader], recipe: Recipe, meter: ProgressMeter
) -> ModuleUpdates:
    found = tuple(
        None if part is None else _read_update(part, reader, recipe, meter)
        for part, reader in zip(module.parts, readers, strict=True)
    )
    return ModuleUpdates(
        module.tensor.name, module.kind, module.n_out, module.n_in, found, is_transposed=module.is_transposed
    )


def _read_update(part: LoraPart, reader: TensorReader, recipe: Recipe, meter: ProgressMeter) -> Update:
    factors = [
        None if spec is None else _read_factor(spec, reader, recipe, meter)
        for spec in (part.a, part.b, part.a_start, part.b_start)
    ]
    a, b, a_start, b_start = factors
    if a is None or b is None:
        raise TypeError("an update has both factors")
    return Update(a, b, part.scaling, a_start, b_start)


def _read_factor(spec: TensorSpec, reader: TensorReader, recipe: Recipe, meter: ProgressMeter) -> Tensor:
    out = torch.empty(spec.n_elements, dtype=torch.float32)
    if not reader.read_floats(spec, 0, out):
        if recipe.nan_policy != "zero":
            raise NotFinite(
                f"Tensor {spec.name!r} of {reader.checkpoint.id} holds NaN or infinity, expected finite numbers; "
                "repair the adapter, exclude the module, or set nan_policy to 'zero'."
            )
        torch.nan_to_num_(out, nan=0.0, posinf=0.0, neginf=0.0)
    meter.advance(spec.size_bytes)
    return out.view(spec.shape[0], -1)


# --- writing --------------------------------------------------------------------------------------------------------


def _output(
    modules: Sequence[AdaptedModule], merged: Mapping[str, LowRank], models: Sequence[LocalCheckpoint]
) -> AdapterOutput:
    """Return what is written: modules without an update are left out, unless none has one."""
    config = models[0].manifest.adapter
    made = [
        AdaptedOutput(one.module, one.kind, one.in_shape, result.a, result.b, one.is_transposed)
        for one in modules
        if (result := merged.get(one.tensor.name)) is not None
    ]
    kept = [one for one in made if one.a.shape[0] > 0] or [_zero(modules[0])]
    return AdapterOutput(
        modules=kept,
        base_model_name=None if config is None else config.base_model_name,
        task_type=None if config is None else config.task_type,
        base_names=_base_names([one.module for one in kept], models),
    )


def _base_names(modules: Sequence[str], models: Sequence[LocalCheckpoint]) -> dict[str, str]:
    """Return what modules are called in the base's files, as the adapters tell it; the first one counts."""
    configs = [model.manifest.adapter for model in reversed(models) if model.manifest.adapter is not None]
    told = {module: name for config in configs for module, name in config.base_names.items()}
    return {module: told[module] for module in modules if module in told}


def _zero(module: AdaptedModule) -> AdaptedOutput:
    a, b = torch.zeros(1, module.n_in), torch.zeros(module.n_out, 1)
    return AdaptedOutput(module.module, module.kind, module.in_shape, a, b, module.is_transposed)


def _refuse_not_finite(made: AdapterOutput) -> None:
    for one in made.modules:
        for factor in (one.a, one.b):
            if not torch.isfinite(factor.float()).all():
                raise NotFinite(
                    f"The merged update of module {one.module!r} holds NaN or infinity, expected finite numbers; lower "
                    "the scaling coefficient or the weights."
                )


def _manifest(made: AdapterOutput, entries: Sequence[FileEntry], specs: Sequence[TensorSpec], output: Path) -> Manifest:
    file = output / specs[0].file
    blake3_of = hashing.hash_weights(file, specs, lambda _: None).blake3_of
    return Manifest(
        kind=CheckpointKind.ADAPTER,
        files=tuple(entries),
        tensors=tuple(sorted(specs, key=lambda spec: spec.name)),
        weights_digest=digest_weights(specs, blake3_of),
        adapter=config_of(made),
    )
