"""Merging state dicts in memory, piece by piece as the pipeline does: what tests and parity runs call a method with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from app.domain.parameter_checks import fill_defaults
from app.domain.recipes import Override, PinnedCheckpoint, PinnedStep, Recipe, RecipeModel
from workers.catalog import load_method
from workers.contract import MergeMethod, PostStep, RecipeCode, Transform
from workers.granularity import step_elements
from workers.pipelines.program import MergeProgram, prepare
from workers.statistics.views import TensorSource

StateDict = Mapping[str, Tensor]
Values = Mapping[str, Any]  # parameters by name


@dataclass(frozen=True)
class MemorySource(TensorSource):
    """A merge set that lies in memory; every model counts once unless weights are given."""

    weights: Sequence[float] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(self.weights) or (1.0,) * len(self.models))


@dataclass(frozen=True)
class MemoryMerge:
    """A method with all it needs, ready to run over state dicts in memory."""

    method: MergeMethod
    parameters: Values = field(default_factory=dict)
    weights: Sequence[float] = ()
    seed: int = 0
    model_keys: tuple[str, ...] = ()
    piece_elements: int = 1 << 20
    nested: Mapping[str, MergeMethod] = field(default_factory=dict)
    transforms: Sequence[tuple[Transform, Values]] = ()
    post_steps: Sequence[tuple[PostStep, Values]] = ()
    of_models: Sequence[Values] = ()  # each model's own parameters
    overrides: Sequence[Override] = ()

    def __call__(self, base: StateDict | None, models: Sequence[StateDict]) -> dict[str, Tensor]:
        """Return the merged state dict, float32."""
        source, program = self.prepare(base, models)
        return {name: _merge_tensor(source, program, name, shape) for name, shape, _ in source.tensors}

    def prepare(self, base: StateDict | None, models: Sequence[StateDict]) -> tuple[TensorSource, MergeProgram]:
        """Return the merge set, and the program that merges its pieces."""
        source = MemorySource(base, models, self.weights, self.piece_elements)
        recipe = self._recipe(source)
        code = RecipeCode(
            _watched(self.method),
            self.nested or _load_nested(self.method, recipe),
            tuple(step for step, _ in self.transforms),
            tuple(step for step, _ in self.post_steps),
        )
        return source, prepare(recipe, code, source)

    def _recipe(self, source: TensorSource) -> Recipe:
        keys = self.model_keys or tuple(f"model {index}" for index in range(source.n_models))
        return Recipe(
            method=self.method.card.name,
            method_version=self.method.card.version,
            base_model=None if source.base is None else PinnedCheckpoint(content_digest="", weights_digest=""),
            models=tuple(
                RecipeModel(content_digest=key, weights_digest=key, weight=weight, parameters=dict(own))
                for key, weight, own in zip(keys, source.weights, self.of_models or [{}] * len(keys), strict=True)
            ),
            parameters=fill_defaults(self.method.card.parameters, self.parameters, n_models=source.n_models),
            seed=self.seed,
            shard_bytes=1 << 40,
            overrides=tuple(self.overrides),
            transforms=tuple(_pin(step, values) for step, values in self.transforms),
            post_steps=tuple(_pin(step, values) for step, values in self.post_steps),
        )


def _load_nested(method: MergeMethod, recipe: Recipe) -> dict[str, MergeMethod]:
    named: Any = recipe.parameters
    return {name: load_method(named[name]["method"]) for name in method.card.nested}


def _pin(step: Transform | PostStep, values: Values) -> PinnedStep:
    parameters = fill_defaults(step.card.parameters, values)
    return PinnedStep(name=step.card.name, version=step.card.version, parameters=parameters)


def _merge_tensor(source: TensorSource, program: MergeProgram, name: str, shape: tuple[int, ...]) -> Tensor:
    n = prod(shape)
    step = step_elements(program.granularity, shape, source.piece_elements)
    merged = [torch.empty(0)]
    merged += [program.merge(source.read(name, at, min(step, n - at))) for at in range(0, n, step)]
    return torch.cat(merged).view(shape)


def _watched(method: MergeMethod) -> MergeMethod:
    """Return the method under a guard: it changes no argument, and keeps shape and dtype."""

    def merge(base: Tensor | None, finetuned: Tensor, parameters: Any, context: Any) -> Tensor:
        given = [finetuned, *(() if base is None else (base,))]
        before = [tensor.clone() for tensor in given]
        result: Tensor = method.merge(base, finetuned, parameters, context)
        assert all(map(torch.equal, before, given)), "a method changed its argument"
        assert result.shape == finetuned.shape[1:]
        assert result.dtype == torch.float32
        return result

    return replace(method, merge=merge)
