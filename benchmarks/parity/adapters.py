"""Our side of the comparisons of adapters: folders, merged by us, and read back by PEFT or by fusion-bench."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.domain.adapter_sets import extracts_adapter, writes_adapter
from app.domain.catalog import load_catalog
from app.domain.checkpoints import LocalCheckpoint
from app.domain.planning import plan_merge
from app.domain.recipes import Recipe, RecipeModel, pin
from benchmarks.parity import ours
from benchmarks.parity.case import LOADED, Case
from benchmarks.parity.inputs import SEED
from workers.catalog import load_adapter_recipe, load_recipe
from workers.pipelines import adapter_merge, lora_extraction
from workers.pipelines.merge import merge_checkpoints

BASE: dict[str, tuple[int, ...]] = {
    "embed.weight": (40, 16), "dense.weight": (16, 16), "dense.bias": (16,), "c_fc.weight": (16, 24),
    "c_fc.bias": (24,), "norm.weight": (24,), "norm.bias": (24,), "conv.weight": (4, 2, 3, 3), "conv.bias": (4,),
    "head.weight": (5, 48), "head.bias": (5,),
}  # fmt: skip
RANK = 4
Draw = Callable[..., Tensor]  # of a shape: normal numbers


@dataclass(frozen=True)
class AdapterInputs:
    """A base, adapters on it, and a dense model that was fine-tuned from it."""

    base: LocalCheckpoint
    adapters: Sequence[LocalCheckpoint]
    linearized: Sequence[LocalCheckpoint]  # of one start, under fusion-bench's names
    finetuned: LocalCheckpoint


def write_inputs(folder: Path) -> AdapterInputs:
    """Write the base, three adapters (the last one with rsLoRA, patterns and a whole tensor), and a dense model."""
    generator = torch.Generator().manual_seed(SEED)

    def draw(*shape: int, scale: float = 0.1) -> Tensor:
        return scale * torch.randn(shape, generator=generator)

    base = {name: draw(*shape) for name, shape in BASE.items()}
    dense = {name: tensor + draw(*tensor.shape, scale=0.03) for name, tensor in base.items()}
    for name, tensors in (("base", base), ("finetuned", dense)):
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    for index in range(3):
        _write_adapter(folder / f"adapter-{index}", draw, is_special=index == 2)
    start = _draw_start(draw)
    for index in range(2):
        _write_linearized(folder / f"linearized-{index}", draw, start)
    return AdapterInputs(
        ours.open_checkpoint(folder / "base"),
        [ours.open_checkpoint(folder / f"adapter-{index}") for index in range(3)],
        [ours.open_checkpoint(folder / f"linearized-{index}") for index in range(2)],
        ours.open_checkpoint(folder / "finetuned"),
    )


def _write_adapter(folder: Path, draw: Draw, *, is_special: bool) -> None:
    at = "base_model.model."
    head = 2 if is_special else RANK
    tensors = {
        f"{at}dense.lora_A.weight": draw(RANK, 16), f"{at}dense.lora_B.weight": draw(16, RANK),
        f"{at}c_fc.lora_A.weight": draw(RANK, 16), f"{at}c_fc.lora_B.weight": draw(24, RANK),
        f"{at}conv.lora_A.weight": draw(RANK, 2, 3, 3), f"{at}conv.lora_B.weight": draw(4, RANK, 1, 1),
        f"{at}embed.lora_embedding_A": draw(RANK, 40), f"{at}embed.lora_embedding_B": draw(16, RANK),
        f"{at}head.lora_A.weight": draw(head, 48), f"{at}head.lora_B.weight": draw(5, head),
    }  # fmt: skip
    config: dict[str, Any] = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": 6, "fan_in_fan_out": False,
        "target_modules": ["dense", "c_fc", "conv", "embed", "head"],
    }  # fmt: skip
    if is_special:
        tensors |= {f"{at}norm.weight": draw(24), f"{at}norm.bias": draw(24)}
        config |= {"use_rslora": True, "rank_pattern": {"head": 2}, "alpha_pattern": {"conv": 3}}
        config |= {"modules_to_save": ["norm"]}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def _draw_start(draw: Draw) -> dict[str, tuple[Tensor, Tensor]]:
    """Return where linearized trainings begin, by module: A and B. PEFT's B is zero; that of one module is not."""
    return {
        "dense": (draw(RANK, 16), torch.zeros(16, RANK)),
        "c_fc": (draw(RANK, 16), draw(24, RANK)),
        "head": (draw(RANK, 48), torch.zeros(5, RANK)),
    }


def _write_linearized(folder: Path, draw: Draw, start: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Write an adapter as fusion-bench keeps one: its wrapper numbers a module's weight and bias before A and B."""
    tensors: dict[str, Tensor] = {}
    for module, (a, b) in start.items():
        at = f"base_model.model.{module}"
        tensors |= {
            f"{at}.model.lora_A.default.weight": a + draw(*a.shape),
            f"{at}.model.lora_B.default.weight": b + draw(*b.shape),
            f"{at}.params0_values.2": a.clone(),
            f"{at}.params0_values.3": b.clone(),
        }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "linearized_adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "target_modules": list(start)}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def merge(case: Case, inputs: AdapterInputs, folder: Path) -> tuple[dict[str, Tensor], Path]:
    """Merge a case; return the dense model that the result is or makes, and the folder of the result."""
    models = _models_of(case, inputs)
    made = merge_models(case.method, case.parameters, case.weights, inputs.base, models, folder / "merged")
    if not (made / "adapter_config.json").exists():
        return load_file(made / "model.safetensors"), made
    return load_file(fuse(inputs.base, ours.open_checkpoint(made), folder / "fused")), made


def fuse(base: LocalCheckpoint, adapter: LocalCheckpoint, output: Path) -> Path:
    """Write the dense model that an adapter makes of its base into the folder `output`; return the file."""
    return merge_models("lora_fuse", {}, (1.0,), base, [adapter], output) / "model.safetensors"


def order(case: Case, inputs: AdapterInputs, made: Path, output: Path) -> dict[str, Any]:
    """Return what the other tool is asked to do: what we did, or to load what we made."""
    document: dict[str, Any] = {
        "call": case.call,
        "base": str(inputs.base.path / "model.safetensors"),
        "parameters": dict(case.oracle_parameters),
        "weights": list(case.weights),
        "output": str(output),
    }
    fused = str(made.parent / "fused" / "model.safetensors")
    if case.call == LOADED:
        return document | {"adapters": [str(made)], "ours": fused}
    models = _models_of(case, inputs)
    if case.oracle == "peft":
        return document | {"adapters": [str(model.path) for model in models]}
    if case.method == "linearized_lora":
        return document | {"adapters": [str(model.path) for model in models], "ours": fused}
    dense = [fuse(inputs.base, model, made.parent / model.id) for model in models]
    return document | {"inputs": [document["base"], *map(str, dense)]}


def _models_of(case: Case, inputs: AdapterInputs) -> list[LocalCheckpoint]:
    if case.method == "lora_extract":
        return [inputs.finetuned]
    if case.variant.startswith("rsLoRA"):
        return [inputs.adapters[2]]
    if case.method == "linearized_lora":
        return list(inputs.linearized[: len(case.weights)])
    return list(inputs.adapters[: len(case.weights)])


def merge_models(  # noqa: PLR0913 a recipe's parts
    name: str,
    parameters: Mapping[str, Any],
    weights: Sequence[float],
    base: LocalCheckpoint,
    models: Sequence[LocalCheckpoint],
    output: Path,
) -> Path:
    """Merge adapters, or make one, into the folder `output`; return it. parameters: `adapter_space` is among them."""
    values = dict(parameters)
    space = values.pop("adapter_space", None)
    card, effective = load_catalog().check(name, values, has_base_model=True, weights=weights)
    recipe = Recipe(
        method=card.name,
        method_version=card.version,
        base_model=pin(base),
        models=tuple(
            RecipeModel(**pin(model).model_dump(), weight=weight) for model, weight in zip(models, weights, strict=True)
        ),
        parameters=effective,
        shard_bytes=ours.SHARD_BYTES,
        adapter_space=space,
    )
    plan = plan_merge(recipe, base.manifest, [model.manifest for model in models], card)
    output.mkdir(parents=True)
    run: dict[str, Any] = {"recipe": recipe, "base": base, "models": models, "output": output}
    if not writes_adapter(recipe, card):
        merge_checkpoints(plan, load_recipe(recipe), on_progress=ours.ignore, **run)
    elif extracts_adapter(card):
        lora_extraction.merge_adapters(plan, load_adapter_recipe(recipe), on_progress=ours.ignore, **run)
    else:
        adapter_merge.merge_adapters(plan, load_adapter_recipe(recipe), on_progress=ours.ignore, **run)
    return output
