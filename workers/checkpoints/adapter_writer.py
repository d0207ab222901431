"""Writes an adapter folder that PEFT loads: factors and whole tensors under its names, and its config.

The scaling of a merge is 1 in every module (alpha = r, rsLoRA off), so that no loader can scale it wrongly: it is in
the factors. That of a training is what it was trained with.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor

from app.domain.adapter_sets import factor_names
from app.domain.adapters import PREFIX, START, Kind
from app.domain.checkpoints import DTYPE_BYTES, FileEntry, LoraConfig, TensorSpec
from app.domain.headers import make_header
from app.domain.lora_configs import BASE_NAMES_FILE, CONFIG_FILE, parse_lora_config
from workers.checkpoints.companions import write_file
from workers.checkpoints.files import ADAPTER_FILE
from workers.checkpoints.reader import TORCH_DTYPES


@dataclass(frozen=True)
class AdaptedOutput:
    """One module of the result."""

    module: str  # its path, as PEFT's model calls it
    kind: Kind
    in_shape: tuple[int, ...]  # [in], or [in, *kernel]
    a: Tensor  # [r, in]
    b: Tensor  # [out, r]
    is_transposed: bool = False  # the base stores [in, out]
    start: tuple[Tensor, Tensor] | None = None  # A and B where a linearized training began


@dataclass(frozen=True)
class AdapterOutput:
    """All that an adapter folder holds."""

    modules: Sequence[AdaptedOutput]
    full: Mapping[str, Tensor] = field(default_factory=dict)  # whole tensors, by the base's names
    modules_to_save: tuple[str, ...] = ()
    bias: str = "none"
    base_model_name: str | None = None
    task_type: str | None = None
    alpha: float | None = None  # None: r, so that the scaling is 1
    use_rslora: bool = False
    base_names: Mapping[str, str] = field(default_factory=dict)  # of modules that the base's files call otherwise


def write_adapter(
    output: AdapterOutput, folder: Path, *, dtype: str, file: str = ADAPTER_FILE
) -> tuple[list[FileEntry], list[TensorSpec]]:
    """Write weights and config into the folder; return the files and the tensors. dtype: safetensors' name of one."""
    tensors = dict(sorted(name_tensors(output).items()))
    stored = {name: tensor.to(TORCH_DTYPES[dtype]).contiguous() for name, tensor in tensors.items()}
    item = DTYPE_BYTES[dtype]
    header = make_header([(name, dtype, tuple(tensor.shape), tensor.numel() * item) for name, tensor in stored.items()])
    content, specs, position = [header], [], len(header)
    for name, tensor in stored.items():
        end = position + tensor.numel() * item
        specs.append(TensorSpec(name=name, dtype=dtype, shape=tuple(tensor.shape), file=file, begin=position, end=end))
        content.append(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
        position = end
    entries = [
        write_file(folder, file, b"".join(content)),
        write_file(folder, CONFIG_FILE, _to_json(write_config(output))),
    ]
    if output.base_names:
        entries.append(write_file(folder, BASE_NAMES_FILE, _to_json(dict(output.base_names))))
    return entries, specs


def write_config(output: AdapterOutput) -> dict[str, JsonValue]:
    """Return the `adapter_config.json` of an adapter."""
    ranks = {one.module: one.a.shape[0] for one in output.modules}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    # PEFT takes the first pattern that fits the end of a path, so longer paths come first
    others = {name: ranks[name] for name in sorted(ranks, key=lambda name: (-len(name), name)) if ranks[name] != rank}
    return {
        "peft_type": "LORA",
        "task_type": output.task_type,
        "base_model_name_or_path": output.base_model_name,
        "r": rank,
        "lora_alpha": rank if output.alpha is None else output.alpha,
        "lora_dropout": 0.0,
        "use_rslora": output.use_rslora,
        "use_dora": False,
        "rank_pattern": dict(others),
        "alpha_pattern": dict(others) if output.alpha is None else {},
        "target_modules": [*sorted(ranks)],
        "modules_to_save": [*output.modules_to_save] or None,
        "bias": output.bias,
        "fan_in_fan_out": _is_turned(output),
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _is_turned(output: AdapterOutput) -> bool:
    """Tell what `fan_in_fan_out` says: it decides for square weights; of others the shape shows it."""
    linear = [one for one in output.modules if one.kind == "linear"]
    square = [one for one in linear if one.a.shape[1] == one.b.shape[0]]
    return any(one.is_transposed for one in square or linear)


def config_of(output: AdapterOutput) -> LoraConfig:
    """Return the config as a manifest records it."""
    return parse_lora_config(write_config(output)).model_copy(update={"base_names": dict(output.base_names)})


def _to_json(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def name_tensors(output: AdapterOutput) -> dict[str, Tensor]:
    """Return the tensors of the adapter's file by name."""
    tensors: dict[str, Tensor] = {}
    for one in output.modules:
        name_a, name_b = factor_names(one.module, one.kind)
        ones = (1,) * (len(one.in_shape) - 1)
        for prefix, (a, b) in {"": (one.a, one.b), **({} if one.start is None else {START: one.start})}.items():
            tensors[prefix + name_a] = a.reshape(a.shape[0], *one.in_shape)
            tensors[prefix + name_b] = b.reshape(*b.shape, *ones)
    targets = {one.module for one in output.modules}
    for name, tensor in output.full.items():
        module, _, leaf = name.rpartition(".")
        inner = f"{module}.base_layer.{leaf}" if module in targets else name  # PEFT wraps what it adapts
        tensors[f"{PREFIX}{inner}"] = tensor
    return tensors
