"""Adapter folders as PEFT writes them, by hand, and the dense models they make, worked out in float64 numpy."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from app.domain.checkpoints import LocalCheckpoint
from tests.workers.files import ignore
from workers.pipelines.importing import import_checkpoint

PREFIX = "base_model.model."
RANK = 3
ALPHA = 6.0

# A base with every kind of tensor that an adapter may lie on, and some that it leaves alone.
BASE_SHAPES: dict[str, tuple[int, ...]] = {
    "model.conv.weight": (4, 3, 2, 2),
    "model.dense.bias": (5,),
    "model.dense.weight": (5, 7),
    "model.embed.weight": (11, 6),
    "model.norm.weight": (5,),
    "model.scale": (),
    "model.square.weight": (6, 6),
    "model.turned.weight": (7, 4),  # [in, out], as GPT-2's Conv1D
}


@dataclass(frozen=True)
class Lora:
    """The factors of one module, in PEFT's orientation."""

    a: Tensor
    b: Tensor
    is_embedding: bool = False


def draw_base(seed: int = 0) -> dict[str, Tensor]:
    """Return a base model."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in BASE_SHAPES.items()}


def draw_modules(seed: int, rank: int = RANK) -> dict[str, Lora]:
    """Return factors for every kind of module of the base."""
    generator = torch.Generator().manual_seed(1000 + seed)

    def draw(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    return {
        "model.conv": Lora(draw(rank, 3, 2, 2), draw(4, rank, 1, 1)),
        "model.dense": Lora(draw(rank, 7), draw(5, rank)),
        "model.embed": Lora(draw(rank, 11), draw(6, rank), is_embedding=True),
        "model.square": Lora(draw(rank, 6), draw(6, rank)),
        "model.turned": Lora(draw(rank, 7), draw(4, rank)),
    }


def name_factors(modules: Mapping[str, Lora], *, prefix: str = PREFIX, adapter: str = "") -> dict[str, Tensor]:
    """Return the factors under PEFT's names; `adapter` stands in them where a state dict was saved as it is."""
    middle = f".{adapter}" if adapter else ""
    tensors: dict[str, Tensor] = {}
    for module, lora in modules.items():
        kind, end = ("lora_embedding_", "") if lora.is_embedding else ("lora_", ".weight")
        tensors[f"{prefix}{module}.{kind}A{middle}{end}"] = lora.a.clone()
        tensors[f"{prefix}{module}.{kind}B{middle}{end}"] = lora.b.clone()
    return tensors


def write_adapter(
    folder: Path,
    modules: Mapping[str, Lora],
    *,
    full: Mapping[str, Tensor] | None = None,
    start: Mapping[str, Lora] | None = None,
    **config: Any,
) -> LocalCheckpoint:
    """Write an adapter folder and import it; `full`: whole tensors by name, `start`: of a linearized training."""
    tensors = name_factors(modules) | {f"{PREFIX}{name}": tensor for name, tensor in (full or {}).items()}
    if start is not None:
        tensors |= {f"params0.{name}": tensor for name, tensor in name_factors(start).items()}
    file = "linearized_adapter_model.safetensors" if start is not None else "adapter_model.safetensors"
    return write_folder(folder, tensors, file=file, **config)


def write_folder(
    folder: Path, tensors: Mapping[str, Tensor], *, file: str = "adapter_model.safetensors", **config: Any
) -> LocalCheckpoint:
    """Write tensors and a config as an adapter folder, and import it."""
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file)
    document = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": [], **config}
    (folder / "adapter_config.json").write_text(json.dumps(document), encoding="utf-8")
    return LocalCheckpoint(id=folder.name, path=folder, manifest=import_checkpoint(folder, ignore))


def fuse(
    base: Mapping[str, Tensor],
    modules: Mapping[str, Lora],
    *,
    scaling: float = ALPHA / RANK,
    turned: Sequence[str] = (),
) -> dict[str, NDArray[np.float64]]:
    """Return W + s·B·A in float64; `turned`: modules of square shape that the base stores as [in, out]."""
    fused = {name: tensor.double().numpy() for name, tensor in base.items()}
    for module, lora in modules.items():
        name = f"{module}.weight"
        a, b = lora.a.double().numpy(), lora.b.double().numpy()
        product = scaling * (b.reshape(len(b), -1) @ a.reshape(len(a), -1))
        is_turned = lora.is_embedding or module == "model.turned" or module in turned
        fused[name] = fused[name] + (product.T if is_turned else product).reshape(fused[name].shape)
    return fused
