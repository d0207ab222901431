"""Merge adapters into an adapter: read all factors, let the method make new ones, write a folder that PEFT loads.

Adapters are small, so all of them are in memory at once. A dense method inside (the parameter `merge`, or any method in
the space `factors`) runs over tensors in memory by the same program as over files.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from math import prod
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
from app.domain.errors import IncompatibleCheckpoints, NotFinite
from app.domain.jobs import Progress
from app.domain.parameters import NestedMethod
from app.domain.plans import MergePlan
from app.domain.recipes import Recipe
from workers.adapter_contract import (
    AdapterCode,
    AdapterContext,
    AdapterMethod,
    Coordinates,
    ModuleUpdates,
    Update,
)
from workers.checkpoints import hashing, parallel
from workers.checkpoints.adapter_writer import AdaptedOutput, AdapterOutput, config_of, write_adapter
from workers.checkpoints.companions import write_file
from workers.checkpoints.reader import TensorReader
from workers.contract import MergeMethod, RecipeCode
from workers.learning_contract import Factors, Learn, Learned
from workers.numerics import updates
from workers.patches import LowRank
from workers.pipelines import program
from workers.pipelines.model_card import write_model_card
from workers.pipelines.progress import ProgressMeter
from workers.statistics.views import TensorSource

LearnOnFactors = Callable[[Mapping[str, Factors]], Learn]  # of the factors, by the base's tensors


def merge_adapters(  # noqa: PLR0913 a recipe, what it names, and how to run it
    plan: MergePlan,
    code: AdapterCode,
    *,
    recipe: Recipe,
    base: LocalCheckpoint,
    models: Sequence[LocalCheckpoint],
    output: Path,
    on_progress: Callable[[Progress], None],
    device: str = "cpu",
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
        meter.enter("merging")
        merged, learned = merge_modules(code, recipe, read, torch.device(device), learn)
    meter.enter("finishing")
    made = _output(modules, merged, models)
    return finish(made, plan, code.method, recipe=recipe, output=output, learned=learned)


def finish(  # noqa: PLR0913 what was made, by what, and where it goes
    made: AdapterOutput,
    plan: MergePlan,
    method: AdapterMethod | MergeMethod,
    *,
    recipe: Recipe,
    output: Path,
    warnings: Sequence[str] = (),
    learned: Learned | None = None,
) -> tuple[Manifest, dict[str, JsonValue]]:
    """Write an adapter with its recipe and its model card; return its manifest and the report."""
    _refuse_not_finite(made)
    entries, specs = write_adapter(made, output, dtype=OUTPUT_DTYPES[recipe.output_dtype or "float32"])
    document = json.dumps(recipe.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False)
    entries.append(write_file(output, "recipe.json", document.encode() + b"\n"))
    entries += [] if learned is None else learned.write(output)
    manifest = _manifest(made, entries, specs, output)
    entries.append(write_file(output, "README.md", write_model_card(recipe, method.card, plan, manifest).encode()))
    report: dict[str, JsonValue] = {
        "parameters": recipe.parameters,
        "adapter_space": recipe.adapter_space,
        "n_merged": len(made.modules),
        "n_copied": len(made.full),
        "n_passes": 1,
        "ranks": {one.module: one.a.shape[0] for one in made.modules},
        "warnings": [*plan.warnings, *warnings],
        **({} if learned is None else {"learned": learned.report()}),
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


# --- merging --------------------------------------------------------------------------------------------------------


def merge_modules(
    code: AdapterCode,
    recipe: Recipe,
    modules: Sequence[ModuleUpdates],
    device: torch.device,
    learn: LearnOnFactors | None = None,
) -> tuple[Mapping[str, LowRank], Learned | None]:
    """Return the result's updates by the base's tensors, of an adapter method or of a dense one in a space of factors.

    Beside them, what such a method has learned.

    Raises: IncompatibleCheckpoints for adapters that the space cannot merge.
    """
    if isinstance(code.method, AdapterMethod):
        parameters = code.method.parameters.model_validate(recipe.parameters)
        return code.method.merge(modules, parameters, _context(code, recipe, device)), None
    if recipe.adapter_space == "concat":
        return _concatenate(code.method, recipe, modules), None
    dense = RecipeCode(code.method) if code.dense is None else code.dense
    return _merge_factors(dense, recipe, modules, device, learn)


def _context(code: AdapterCode, recipe: Recipe, device: torch.device) -> AdapterContext:
    inner = code.dense
    weights = tuple(model.weight for model in recipe.models)

    def merge(models: Sequence[Coordinates]) -> dict[str, Tensor]:
        if inner is None:
            raise TypeError(f"{recipe.method} names no method to merge with")
        return merge_coordinates(inner, _inner_recipe(recipe), models, device)[0]

    return AdapterContext(
        weights=weights,
        seed=recipe.seed,
        model_keys=tuple(model.weights_digest for model in recipe.models),
        merge=merge,
        coefficients=None if inner is None else _coefficients(inner.method, _inner_recipe(recipe), weights),
    )


def _coefficients(method: MergeMethod, recipe: Recipe, weights: tuple[float, ...]) -> tuple[float, ...] | None:
    if method.coefficients is None:
        return None
    return tuple(method.coefficients(method.parameters.model_validate(recipe.parameters), weights))


def _inner_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of the method that the parameter `merge` names."""
    inner = NestedMethod.model_validate(recipe.parameters["merge"])
    return recipe.model_copy(
        update={"method": inner.method, "method_version": inner.version or 1, "parameters": dict(inner.parameters)}
    )


def merge_coordinates(
    code: RecipeCode,
    recipe: Recipe,
    models: Sequence[Coordinates],
    device: torch.device,
    learn: Learn | None = None,
) -> tuple[dict[str, Tensor], Learned | None]:
    """Merge tensors that lie in memory around a base of zeros, by the recipe's own program; return what was learned."""
    zeros = {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in models[0].items()}
    source = TensorSource(
        base=zeros if code.uses_base else None,
        models=[{name: tensor.float() for name, tensor in model.items()} for model in models],
        weights=[model.weight for model in recipe.models],
    )
    ready = program.prepare(recipe, code, source, device=device, learn=learn)
    merged: dict[str, Tensor] = {}
    for name, shape, _ in source.tensors:
        n_elements = prod(shape)
        whole = ready.merge(source.read(name, 0, n_elements)) if n_elements else torch.empty(0)
        merged[name] = whole.view(shape)
    return merged, ready.learned


def _merge_factors(
    code: RecipeCode,
    recipe: Recipe,
    modules: Sequence[ModuleUpdates],
    device: torch.device,
    learn: LearnOnFactors | None,
) -> tuple[dict[str, LowRank], Learned | None]:
    """Merge the factors A and B themselves, as if they were a model's tensors."""
    for module in modules:
        _check_alike(module)
    factors = {module.name: _name_factors(module) for module in modules}
    models: list[dict[str, Tensor]] = [{} for _ in recipe.models]
    for module in modules:
        for model, update in zip(models, module.updates, strict=True):
            if update is not None:
                model[factors[module.name].a] = update.a
                model[factors[module.name].b] = update.b
    merged, learned = merge_coordinates(code, recipe, models, device, None if learn is None else learn(factors))
    updates_of = {name: LowRank(a=merged[of.a], b=merged[of.b] * of.scaling) for name, of in factors.items()}
    return updates_of, learned


def _name_factors(module: ModuleUpdates) -> Factors:
    name = module.name.removesuffix(".weight")
    scaling = next(update.scaling for update in module.updates if update is not None)
    return Factors(f"{name}.lora_A", f"{name}.lora_B", scaling, module.is_transposed)


def _check_alike(module: ModuleUpdates) -> None:
    """Refuse updates whose factors do not correspond: of different ranks or scalings, or of which some are missing."""
    facts = {None if update is None else (update.a.shape[0], update.scaling) for update in module.updates}
    if len(facts) > 1:
        found = ", ".join(
            "none" if update is None else f"rank {update.a.shape[0]}, scaling {update.scaling:g}"
            for update in module.updates
        )
        raise IncompatibleCheckpoints(
            f"The adapters' updates of {module.name!r} differ ({found}); in the space 'factors' all must have one rank "
            "and one scaling. Merge in the space 'delta' or 'concat'."
        )
    if any(update is not None and update.a_start is not None for update in module.updates):
        raise IncompatibleCheckpoints(
            f"The adapters' updates of {module.name!r} are linearized; merging their factors as they are would forget "
            "where they began. Use the method linearized_lora, or the space 'delta'."
        )


def _concatenate(method: MergeMethod, recipe: Recipe, modules: Sequence[ModuleUpdates]) -> dict[str, LowRank]:
    """Stack the factors of a linear combination: exact, of the sum of the ranks."""
    coefficients = _coefficients(method, recipe, tuple(model.weight for model in recipe.models))
    if coefficients is None:
        raise TypeError(f"{method.card.name} is no linear combination")
    return {module.name: updates.stack(module, coefficients) for module in modules}


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
    blake3_of = hashing.hash_tensors(file, sorted(specs, key=lambda spec: spec.begin), lambda _: None)
    return Manifest(
        kind=CheckpointKind.ADAPTER,
        files=tuple(entries),
        tensors=tuple(sorted(specs, key=lambda spec: spec.name)),
        weights_digest=digest_weights(specs, blake3_of),
        adapter=config_of(made),
    )
