"""Trains the factors of LoRA layers, plain or linearized, and gives the adapter that they make."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from workers.model_contract import LoraResult, Run, Trainable, Trained
from workers.training.injection import Layers, begin, factors, inject, read_update
from workers.training.linearized import LinearizedLora, linearize
from workers.training.loop import optimize
from workers.training.parameters import LoraParameters


def train_adapter(
    trainable: Trainable, parameters: LoraParameters, run: Run, *, is_linearized: bool = False
) -> Trained:
    """Put LoRA layers into the module, linearized if asked for, and train them.

    Raises: InvalidParameters, IncompatibleCheckpoints; as `optimize`.
    """
    layers = inject(trainable.module, parameters, held=trainable.unreached | trainable.head)
    begin(layers, base_key=run.base_key, init_seed=parameters.init_seed or 0, start=run.start)
    linearized = linearize(trainable.module, layers) if is_linearized else {}
    head = _free_head(trainable, parameters)
    if run.on_begin is not None:
        run.on_begin(_read(layers, linearized, head, parameters))
    chosen = head | {
        f"{name}.{letter}": factor
        for name, layer in layers.items()
        for letter, factor in zip("AB", factors(layer), strict=True)
        if factor.requires_grad
    }
    trained = optimize(trainable, chosen, parameters, run)
    return replace(trained, adapter=_read(layers, linearized, head, parameters))


def _free_head(trainable: Trainable, parameters: LoraParameters) -> dict[str, torch.nn.Parameter]:
    """Let the checkpoint's own head learn, if it may, and return its parameters by name."""
    if parameters.freeze_head:
        return {}
    head = {name: value for name, value in trainable.module.named_parameters() if name in trainable.head}
    for value in head.values():
        value.requires_grad = True
    return head


def _read(
    layers: Layers,
    linearized: Mapping[str, LinearizedLora],
    head: Mapping[str, torch.nn.Parameter],
    parameters: LoraParameters,
) -> LoraResult:
    updates = [
        read_update(name, layer, linearized[name].start if name in linearized else None)
        for name, layer in layers.items()
    ]
    whole = {name: value.detach().cpu() for name, value in head.items()}
    return LoraResult(tuple(updates), alpha=parameters.alpha, use_rslora=parameters.use_rslora, whole=whole)
