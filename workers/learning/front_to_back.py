"""Regression front to back: each layer is merged on what reaches it through the layers that are merged already.

Source: Nguyen et al. 2025, arXiv:2508.03121 (RegMean++), section 3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from app.domain.checkpoints import FileEntry
from workers.learning.gram import GramSums, LinearLayer, find_linear_layers
from workers.learning.means import weighted_mean
from workers.learning.merged_weights import put_in_place
from workers.learning.regmean import RegmeanParameters
from workers.learning_contract import LearningSession
from workers.model_contract import Probe
from workers.numerics.regression import Regression


@dataclass(frozen=True)
class LearnedLayers:
    """The merged linear layers; satisfies learning_contract.Learned."""

    layers: dict[str, Tensor]  # weight -> [*shape] float32
    n_stages: int

    def report(self) -> dict[str, JsonValue]:
        """Return how many layers were merged, in how many stages."""
        return {"n_tensors": len(self.layers), "n_stages": self.n_stages}

    def write(self, folder: Path) -> Sequence[FileEntry]:
        """Write nothing: the layers are the artifact's weights."""
        return ()


def learn_front_to_back(session: LearningSession, parameters: RegmeanParameters) -> LearnedLayers:
    """Return the linear layers, merged stage by stage: blocks, and modules outside of blocks, in the order they run in.

    Memory: one set of weights, whatever the number of models, and the Gram matrices of a stage.
    Raises: NotFinite naming a layer; whatever opening a task raises.
    """
    return _Run(session, parameters, _SharedWeights(session)).learn()


def find_stages(probe: Probe) -> list[str]:
    """Return the paths of what is merged at a time: the blocks of the model and modules outside them, as they run."""
    module = probe.module
    order: dict[str, None] = {}

    def note(stage: str) -> Callable[..., None]:
        return lambda *_: order.setdefault(stage)

    handles = [
        one.register_forward_pre_hook(note(_stage_of(module, path)))
        for path, one in module.named_modules()
        if path and any(True for _ in one.parameters(recurse=False))
    ]
    try:
        with torch.no_grad():
            probe.losses([0])
    finally:
        for handle in handles:
            handle.remove()
    return list(order)


def _stage_of(module: nn.Module, path: str) -> str:
    """Return the block that a module lies in, an entry of the outermost list of modules, or the module itself."""
    parts = path.split(".")
    for length in range(1, len(parts)):
        if isinstance(module.get_submodule(".".join(parts[:length])), nn.ModuleList):
            return ".".join(parts[: length + 1])
    return path


class _SharedWeights:
    """The tensors of the merge set, held by the models of all tasks at once: the mean, a model's own, or merged."""

    def __init__(self, session: LearningSession) -> None:
        self._session = session
        self._shapes = {name: shape for name, shape, _ in session.source.tensors}
        self.tensors: dict[str, nn.Parameter] = {}

    def bind(self, module: nn.Module) -> None:
        """Put the shared tensors in place of a model's own."""
        for path, name in self._session.places(module).items():
            if name not in self._shapes:
                continue
            if name not in self.tensors:
                value = self.mean(name).float().to(self._session.device)
                self.tensors[name] = nn.Parameter(value, requires_grad=False)
            put_in_place(module, path, self.tensors[name])

    def mean(self, name: str) -> Tensor:
        """Return the weighted mean of a tensor, [*shape] float64."""
        return weighted_mean(self.of_models(name), self._session.context)

    def of_models(self, name: str) -> Tensor:
        """Return a tensor of all models, [n, *shape] float32."""
        shape = self._shapes[name]
        return self._session.source.read(name, 0, prod(shape)).finetuned.view(-1, *shape)

    def put(self, name: str, value: Tensor) -> None:
        """Set a tensor in all models."""
        self.tensors[name].copy_(value)


@dataclass(frozen=True)
class _Stage:
    """What is merged at a time."""

    path: str
    tensors: tuple[str, ...]
    layers: tuple[tuple[LinearLayer, ...], ...]  # of each task's model


class _Reached(Exception):
    """A stage has run; what comes behind it is of no interest."""


@dataclass(frozen=True)
class _Run:
    session: LearningSession
    parameters: RegmeanParameters
    weights: _SharedWeights

    def learn(self) -> LearnedLayers:
        stages = [stage for stage in self.stages if stage.layers[0]]
        merged: dict[str, Tensor] = {}
        with torch.no_grad():
            for at, stage in enumerate(stages):
                found = self.merge(stage, at, len(stages))
                for name in stage.tensors:
                    self.weights.put(name, found[name] if name in found else self.weights.mean(name))
                merged |= found
        return LearnedLayers(merged, len(stages))

    @cached_property
    def probes(self) -> list[Probe]:
        probes: list[Probe] = []
        for task in range(self.session.source.n_models):
            probes.append(self.session.open(task, model=task))
            self.weights.bind(probes[-1].module)
        return probes

    @cached_property
    def stages(self) -> list[_Stage]:
        layers = [find_linear_layers(probe.module, self.weights.tensors) for probe in self.probes]
        places = self.session.places(self.probes[0].module)
        held = {path: name for path, name in places.items() if name in self.weights.tensors}
        return [
            _Stage(
                path,
                tuple(sorted({name for at, name in held.items() if _lies_in(at, path)})),
                tuple(tuple(layer for layer in of_task if _lies_in(layer.path, path)) for of_task in layers),
            )
            for path in find_stages(self.probes[0])
        ]

    def merge(self, stage: _Stage, at: int, n_stages: int) -> dict[str, Tensor]:
        """Return the stage's linear layers, merged; all that runs before it is merged already."""
        models = {name: self.weights.of_models(name) for name in stage.tensors}
        means = {layer.tensor: self.weights.mean(layer.tensor) for layer in stage.layers[0]}
        sums = {layer.tensor: Regression(_turned(means[layer.tensor], layer)) for layer in stage.layers[0]}
        for task, (probe, weight) in enumerate(zip(self.probes, self.session.context.weights, strict=True)):
            for name, of_models in models.items():
                self.weights.put(name, of_models[task])
            grams = _measure(probe, stage.path, stage.layers[task])
            for layer in stage.layers[task]:
                if layer.gram in grams:
                    sums[layer.tensor].add(
                        _turned(models[layer.tensor][task], layer),
                        grams[layer.gram].cpu(),
                        weight,
                        non_diagonal_scale=self.parameters.non_diagonal_scale,
                    )
            self.session.on_count(at * len(self.probes) + task + 1, n_stages * len(self.probes))
        return {
            layer.tensor: _turned(sums[layer.tensor].solve(self.parameters.ridge), layer).float().contiguous()
            for layer in stage.layers[0]
        }


def _measure(probe: Probe, path: str, layers: Sequence[LinearLayer]) -> dict[str, Tensor]:
    """Return the Gram matrices of layers that lie in the module of a path; nothing behind it is run."""

    def stop(*_: object) -> None:
        raise _Reached

    sums = GramSums()
    handle = probe.module.get_submodule(path).register_forward_hook(stop)
    try:
        with sums.watching(layers):
            for index in range(probe.n_examples):
                try:
                    probe.losses([index])
                except _Reached:
                    continue
    finally:
        handle.remove()
    return sums.means()


def _lies_in(path: str, stage: str) -> bool:
    return path == stage or path.startswith(f"{stage}.")


def _turned(matrix: Tensor, layer: LinearLayer) -> Tensor:
    """Return a weight as [out, in], or back."""
    return matrix.mT if layer.is_transposed else matrix
