"""Puts LoRA into a model in memory, by PEFT, and takes what was learned out of it again.

Where the factors begin depends on the base's weights, the module and `init_seed` alone, and not on the task: adapters
of one base can be merged factor by factor. B begins at zero, so that training begins at the base.

Source: Hu et al. 2022, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732 (rsLoRA). A begins as PEFT has it,
uniform in ±1/√in.
"""

import hashlib
from collections.abc import Mapping

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULT_TARGETS
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from app.domain.errors import FieldProblem, IncompatibleCheckpoints, InvalidParameters, near_match
from workers.checkpoints.model import list_names
from workers.model_contract import LoraUpdate, Start
from workers.numerics import randomness
from workers.training.parameters import LoraParameters

ADAPTER = "default"  # PEFT's name of the only adapter
_ADAPTABLE = (torch.nn.Linear, Conv1D, torch.nn.Conv2d)

Layers = Mapping[str, LoraLayer]


def inject(
    module: torch.nn.Module, parameters: LoraParameters, *, held: frozenset[str] = frozenset()
) -> dict[str, LoraLayer]:
    """Put LoRA on the target modules; return the layers by their paths in memory, sorted.

    held: names of parameters whose modules are no targets.
    Raises: InvalidParameters for a target that names no module, or one that cannot be adapted.
    """
    targets = choose_targets(module, parameters.target_modules, held=held)
    config = LoraConfig(
        r=parameters.rank,
        lora_alpha=parameters.alpha,  # type: ignore[arg-type]  # a number with a fraction works as well
        lora_dropout=parameters.dropout,
        use_rslora=parameters.use_rslora,
        target_modules=list(targets),
        fan_in_fan_out=any(isinstance(module.get_submodule(name), Conv1D) for name in targets),
    )
    with torch.random.fork_rng(devices=[]):  # PEFT draws a beginning, which ours replaces
        inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    return {name: layer for name, layer in sorted(module.named_modules()) if isinstance(layer, LoraLayer)}


def choose_targets(
    module: torch.nn.Module, asked: tuple[str, ...] | None, *, held: frozenset[str] = frozenset()
) -> tuple[str, ...]:
    """Return the full paths of the modules to adapt, sorted.

    asked: paths, or ends of paths; None: what PEFT adapts by default in such a model, mostly query and value. held: as
    `inject` has it.
    Raises: InvalidParameters.
    """
    adaptable = sorted(
        name for name, layer in module.named_modules() if _is_adaptable(layer) and f"{name}.weight" not in held
    )
    if asked is None:
        asked = _default_targets(module, adaptable)
    faults = [fault for index, target in enumerate(asked) for fault in _faults(module, target, index, adaptable)]
    if faults:
        raise InvalidParameters(f"{faults[0].pointer}: {faults[0].message}", errors=faults)
    return tuple(name for name in adaptable if any(_fits(name, target) for target in asked))


def begin(layers: Layers, *, base_key: str, init_seed: int, start: Start | None) -> None:
    """Give the factors the values that they begin with; `start`: those of another adapter.

    Raises: IncompatibleCheckpoints for a start of other modules or shapes.
    """
    if start is not None:
        _refuse_other_start(layers, start)
    with torch.no_grad():
        for name, layer in layers.items():
            a, b = factors(layer)
            if start is None:
                a.copy_(draw_first_factor(a.shape, key=f"{base_key}\0lora_A\0{name}\0{init_seed}"))
                b.zero_()
            else:
                a.copy_(start[name][0].view_as(a))
                b.copy_(start[name][1].view_as(b))


def draw_first_factor(shape: torch.Size, *, key: str) -> Tensor:
    """Return A, uniform in ±1/√in, float32; entry i depends on the key and i alone.  shape: [r, in, *kernel]"""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    bound = shape[1:].numel() ** -0.5
    return randomness.draw_uniform(number, start=0, n=shape.numel()).mul(2 * bound).sub(bound).float().view(shape)


def factors(layer: LoraLayer) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    """Return A [r, in, *kernel] and B [out, r, 1, …] of a layer."""
    return layer.lora_A[ADAPTER].get_parameter("weight"), layer.lora_B[ADAPTER].get_parameter("weight")


def read_update(name: str, layer: LoraLayer, start: tuple[Tensor, Tensor] | None = None) -> LoraUpdate:
    """Return what a layer has learned. start: of a linearized layer."""
    a, b = (factor.detach().cpu().flatten(1) for factor in factors(layer))
    return LoraUpdate(
        module=name,
        in_shape=tuple(factors(layer)[0].shape[1:]),
        a=a,
        b=b,
        start=None if start is None else (start[0].cpu().flatten(1), start[1].cpu().flatten(1)),
        is_transposed=isinstance(layer.get_base_layer(), Conv1D),
    )


def _is_adaptable(layer: torch.nn.Module) -> bool:
    if isinstance(layer, torch.nn.Conv2d):
        return layer.groups == 1
    return type(layer) in _ADAPTABLE  # a class derived from Linear may use its weight in a way of its own


def _default_targets(module: torch.nn.Module, adaptable: list[str]) -> tuple[str, ...]:
    """Return PEFT's targets for the architecture, else the first of its targets for any that are all there."""
    own = DEFAULT_TARGETS.get(str(getattr(getattr(module, "config", None), "model_type", "")))
    for targets in (own, *DEFAULT_TARGETS.values()):
        if targets is None or isinstance(targets, str):  # a regular expression, for a model of several parts
            continue
        if all(any(_fits(name, target) for name in adaptable) for target in targets):
            return tuple(targets)
    raise InvalidParameters(
        f"target_modules: no query and value were found in the {type(module).__name__}; expected names of modules, of "
        f"which it has: {list_names(_ends(adaptable))}. Name some."
    )


def _faults(module: torch.nn.Module, target: str, index: int, adaptable: list[str]) -> list[FieldProblem]:
    if any(_fits(name, target) for name in adaptable):
        return []
    pointer = f"/parameters/target_modules/{index}"
    there = [layer for name, layer in module.named_modules() if name and _fits(name, target)]
    if any(_is_adaptable(layer) for layer in there):
        message = f"{target!r} lies in the head, or where no output of this task depends on it; name other modules"
        return [FieldProblem(pointer, message)]
    if there:
        message = f"{target!r} is a {type(there[0]).__name__}, which cannot be adapted; name linear modules"
        return [FieldProblem(pointer, message)]
    ends = _ends(adaptable)
    message = f"the model has no module {target!r}; it has {list_names(ends)}"
    return [FieldProblem(pointer, message, near_match(target, [*ends, *adaptable]))]


def _ends(names: list[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def _fits(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _refuse_other_start(layers: Layers, start: Start) -> None:
    missing, extra = sorted(set(layers) - set(start)), sorted(set(start) - set(layers))
    if missing or extra:
        raise IncompatibleCheckpoints(
            f"The adapter in `family` adapts {len(start)} modules and this request {len(layers)}; they differ in "
            f"{list_names(missing + extra)}. Name the family's modules in target_modules."
        )
    for name, layer in layers.items():
        rank, there = factors(layer)[0].shape[0], start[name][0].shape[0]
        if rank != there:
            raise IncompatibleCheckpoints(
                f"The adapter in `family` has rank {there} in {name!r} and this request rank {rank}, expected the "
                f"same: set rank to {there}."
            )
