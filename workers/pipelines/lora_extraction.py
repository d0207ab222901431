"""Make an adapter of a dense model: read one matrix after the other, let the method cut its change to a rank, write.

A model that is itself an adapter is read as the dense model it makes (the space delta).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor

from app.domain.adapters import as_dense
from app.domain.checkpoints import LocalCheckpoint, Manifest, TensorSpec, distinct_tensors
from app.domain.errors import NotFinite
from app.domain.extractions import ExtractedModule, Extraction, find_extraction
from app.domain.jobs import Progress
from app.domain.plans import MergePlan
from app.domain.recipes import Recipe
from workers.adapter_contract import AdapterCode, AdapterContext, AdapterMethod, Change, Coordinates, DenseChange
from workers.checkpoints import parallel
from workers.checkpoints.adapter_writer import AdaptedOutput, AdapterOutput
from workers.checkpoints.adapters import open_model
from workers.checkpoints.reader import FloatReader, TensorReader
from workers.numerics import low_rank
from workers.patches import LowRank
from workers.pipelines.adapter_merge import finish
from workers.pipelines.adapter_program import MergedModules
from workers.pipelines.progress import ProgressMeter


@dataclass(frozen=True)
class _Pair:
    """The base and the model, open."""

    base: TensorReader
    model: FloatReader
    found: Mapping[str, TensorSpec]  # the model's tensors by the base's names
    nan_policy: str
    meter: ProgressMeter

    def read(self, tensor: TensorSpec) -> tuple[Tensor, Tensor]:
        """Return (base, model), float32 in the tensor's shape."""
        spec = self.found[tensor.name]
        base, model = torch.empty(tensor.n_elements), torch.empty(tensor.n_elements)
        for reader, where, out in ((self.base, tensor, base), (self.model, spec, model)):
            if not reader.read_floats(where, 0, out):
                self._refuse_or_zero(tensor.name, reader, out)
        self.meter.advance(tensor.size_bytes + spec.size_bytes)
        return base.view(tensor.shape), model.view(tensor.shape)

    def _refuse_or_zero(self, name: str, reader: FloatReader, out: Tensor) -> None:
        if self.nan_policy != "zero":
            raise NotFinite(
                f"Tensor {name!r} of {reader.checkpoint.id} holds NaN or infinity, expected finite numbers; repair the "
                "model, exclude the tensor, or set nan_policy to 'zero'."
            )
        torch.nan_to_num_(out, nan=0.0, posinf=0.0, neginf=0.0)


def merge_adapters(  # noqa: PLR0913 a recipe, what it names, and how to run it
    plan: MergePlan,
    code: AdapterCode,
    *,
    recipe: Recipe,
    base: LocalCheckpoint,
    models: Sequence[LocalCheckpoint],
    output: Path,
    on_progress: Callable[[Progress], None],
) -> tuple[Manifest, dict[str, JsonValue]]:
    """Write the adapter into the empty folder `output`; return its manifest and a report.

    Raises: IncompatibleCheckpoints, Invalid; NotFinite naming the tensor; InputChanged.
    """
    if not isinstance(code.method, AdapterMethod):
        raise TypeError(f"{recipe.method} makes no adapter of a dense model")
    extraction = find_extraction(recipe, base.manifest, [model.manifest for model in models])
    meter = ProgressMeter(on_progress, total=plan.bytes_read)
    with ExitStack() as stack:
        stack.enter_context(parallel.one_torch_thread())
        pair = _open(stack, base, models[0], recipe, meter)
        meter.enter("decomposing")
        norms: dict[str, float] = {}
        changes = {module.tensor.name: _change_of(module, pair, norms) for module in extraction.modules}
        merged: dict[str, LowRank] = {}
        for group in extraction.groups:
            parameters = code.method.parameters.model_validate(group.parameters)
            own = [changes[name] for name in group.names if name in changes]
            merged |= code.method.merge(own, parameters, _context(recipe))
        full = _read_changed(extraction, pair)
    meter.enter("finishing")
    made = _output(extraction, merged, full)
    extracted = MergedModules(merged, extraction.groups)
    manifest, report = finish(made, plan, code.method, recipe=recipe, output=output, merged=extracted)
    return manifest, report | {"captured_energy": _captured(merged, norms), "skipped": list(extraction.skipped)}


def _open(
    stack: ExitStack, base: LocalCheckpoint, model: LocalCheckpoint, recipe: Recipe, meter: ProgressMeter
) -> _Pair:
    base_reader = stack.enter_context(TensorReader(base))
    reader = open_model(stack, model, base_reader)
    _, found = distinct_tensors(base.manifest, [as_dense(model.manifest, base.manifest)])
    return _Pair(base_reader, reader, found[0], recipe.nan_policy, meter)


def _context(recipe: Recipe) -> AdapterContext:
    def merge(_models: Sequence[Coordinates]) -> dict[str, Tensor]:
        raise TypeError(f"{recipe.method} names no method to merge with")

    return AdapterContext(
        weights=tuple(model.weight for model in recipe.models),
        seed=recipe.seed,
        model_keys=tuple(model.weights_digest for model in recipe.models),
        merge=merge,
    )


def _change_of(module: ExtractedModule, pair: _Pair, norms: dict[str, float]) -> DenseChange:
    def read() -> Change:
        base, model = (tensor.flatten(start_dim=1).double() for tensor in pair.read(module.tensor))  # [rows, columns]
        change = model - base
        norms[module.tensor.name] = float(change.square().sum())
        rounding = low_rank.rounding([model.square_().add_(base.square_())], base)
        return Change(change.T if module.is_transposed else change, rounding)

    return DenseChange(module.tensor.name, read)


def _read_changed(extraction: Extraction, pair: _Pair) -> dict[str, Tensor]:
    """Return the whole tensors of the model that are not the base's."""
    changed: dict[str, Tensor] = {}
    for tensor in extraction.full:
        base, model = pair.read(tensor)
        if not torch.equal(base, model):
            changed[tensor.name] = model
    return changed


def _output(extraction: Extraction, merged: Mapping[str, LowRank], full: Mapping[str, Tensor]) -> AdapterOutput:
    made = [
        AdaptedOutput(one.module, one.kind, one.in_shape, result.a, result.b, one.is_transposed)
        for one in extraction.modules
        if (result := merged[one.tensor.name]).rank > 0
    ]
    if not made and extraction.modules:  # PEFT wants a module, even if nothing changed
        one = extraction.modules[0]
        zeros = torch.zeros(1, one.n_in), torch.zeros(one.n_out, 1)
        made = [AdaptedOutput(one.module, one.kind, one.in_shape, *zeros, one.is_transposed)]
    targets = {one.module for one in made}
    saved = sorted({name.rpartition(".")[0] for name in full} - targets - {""})
    return AdapterOutput(
        modules=made,
        full=full,
        modules_to_save=tuple(saved),
        bias="all" if any(name.rpartition(".")[0] in targets for name in full) else "none",
    )


def _captured(merged: Mapping[str, LowRank], norms: Mapping[str, float]) -> dict[str, JsonValue]:
    """Return, per tensor, the part of the change's squared norm that the update holds; 1 where nothing changed."""
    captured: dict[str, JsonValue] = {}
    for name, result in merged.items():
        kept = float(((result.b.T @ result.b) * (result.a @ result.a.T)).sum())
        captured[name] = min(1.0, kept / norms[name]) if norms[name] > 0 else 1.0
    return captured
