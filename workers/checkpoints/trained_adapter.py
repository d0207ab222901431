"""Write a trained adapter: PEFT's folder; of a linearized one, its factors with their start and a copy that PEFT loads.

The copy is plain LoRA with the factors A₀ and B, which computes the same: W + s B A₀. Where B₀ is not zero the
expansion has another rank than the config can say, and there is no copy.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from app.domain.checkpoints import CheckpointKind, Manifest, TensorSpec
from workers.checkpoints.adapter_writer import AdaptedOutput, AdapterOutput, config_of, name_tensors, write_adapter
from workers.checkpoints.files import ADAPTER_FILE, LINEARIZED_FILE
from workers.model_contract import LoraResult

DTYPE = "F32"


def write_trained_adapter(result: LoraResult, folder: Path, base_names: Mapping[str, str]) -> None:
    """Write the adapter's weights and config into the folder.

    base_names: what modules are called in the base's files, where that differs.
    """
    output = _output(result, base_names)
    starts = [one.start for one in output.modules if one.start is not None]
    if starts:
        write_adapter(output, folder, dtype=DTYPE, file=LINEARIZED_FILE)
    if not any(bool(b_start.any()) for _, b_start in starts):
        plain = [replace(one, a=one.a if one.start is None else one.start[0], start=None) for one in output.modules]
        write_adapter(replace(output, modules=plain), folder, dtype=DTYPE, file=ADAPTER_FILE)


def describe(result: LoraResult, base_names: Mapping[str, str]) -> Manifest:
    """Return what planning would know of the adapter, were it written: its tensors without digests, and its config."""
    output = _output(result, base_names)
    tensors = [
        TensorSpec(name=name, dtype=DTYPE, shape=tuple(tensor.shape), file=ADAPTER_FILE, begin=0, end=tensor.nbytes)
        for name, tensor in sorted(name_tensors(output).items())
    ]
    kind = CheckpointKind.ADAPTER
    return Manifest(kind=kind, files=(), tensors=tuple(tensors), weights_digest="", adapter=config_of(output))


def _output(result: LoraResult, base_names: Mapping[str, str]) -> AdapterOutput:
    modules = [
        AdaptedOutput(
            module=one.module,
            kind="linear" if len(one.in_shape) == 1 else "conv",
            in_shape=one.in_shape,
            a=one.a,
            b=one.b,
            is_transposed=one.is_transposed,
            start=one.start,
        )
        for one in result.updates
    ]
    return AdapterOutput(
        modules=modules,
        full=result.whole,
        modules_to_save=tuple(sorted({name.split(".", 1)[0] for name in result.whole})),
        alpha=result.alpha,
        use_rslora=result.use_rslora,
        base_names=dict(base_names),
    )
