"""Which parameters and weights hold for which tensors: overrides by glob, gradients over the depth.

Tensors with the same parameters and weights form a group. What a method counts over the whole model ("global") it
counts within a group; a recipe without overrides and gradients has one. Of a method inside a method the parameters may
differ likewise, not the method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeGuard

from pydantic import JsonValue

from app.domain.checkpoints import digest_json
from app.domain.depth import Block, depth_of, find_blocks, interpolate
from app.domain.errors import FieldProblem, Invalid
from app.domain.recipes import Override, Recipe


@dataclass(frozen=True)
class TensorGroup:
    """Tensors that are merged alike."""

    names: tuple[str, ...]  # sorted
    parameters: dict[str, JsonValue]  # effective, without gradients
    weights: tuple[float, ...]  # one per model
    of_models: tuple[dict[str, JsonValue], ...] = ()  # each model's effective ones, where some has its own


def group_tensors(recipe: Recipe, names: Sequence[str]) -> tuple[TensorGroup, ...]:
    """Return the groups of the merged tensors, by the first name of each.

    Raises: Invalid for an override that matches none of the names, or a gradient where no blocks are numbered.
    """
    _check_matches(recipe.overrides, names)
    blocks = find_blocks(names)
    if not blocks and _has_gradients(recipe):
        message = "a list of numbers is interpolated over the depth, but no tensor's name numbers the model's blocks"
        raise Invalid(f"{recipe.method}: {message}. Give one number.", errors=[FieldProblem("/parameters", message)])
    groups: dict[str, tuple[list[str], _Values]] = {}
    for name in sorted(names):
        values = _of_tensor(recipe, name, blocks)
        key = digest_json([values.parameters, list(values.weights), list(values.of_models)])
        groups.setdefault(key, ([], values))[0].append(name)
    return tuple(
        TensorGroup(tuple(members), values.parameters, values.weights, values.of_models)
        for members, values in groups.values()
    )


@dataclass(frozen=True)
class _Values:
    """What holds for one tensor, as in its group."""

    parameters: dict[str, JsonValue]
    weights: tuple[float, ...]
    of_models: tuple[dict[str, JsonValue], ...]


def _check_matches(overrides: Sequence[Override], names: Sequence[str]) -> None:
    faults = [
        FieldProblem(f"/overrides/{index}/match", f"{override.match!r} matches none of the {len(names)} merged tensors")
        for index, override in enumerate(overrides)
        if not any(fnmatchcase(name, override.match) for name in names)
    ]
    if faults:
        raise Invalid(f"{faults[0].pointer}: {faults[0].message}. Correct it or leave it out.", errors=faults)


def _has_gradients(recipe: Recipe) -> bool:
    own = [one for override in recipe.overrides for one in (override.parameters, *(override.models or ())) if one]
    own += [model.parameters for model in recipe.models]
    values = [value for one in (recipe.parameters, *own) for value in one.values()]
    inside = [value for nested in values if _is_nested(nested) for value in nested["parameters"].values()]
    weights = [weight for one in recipe.overrides for weight in one.weights or () if weight is not None]
    return any(_is_gradient(value) for value in (*values, *inside, *weights))


def _of_tensor(recipe: Recipe, name: str, blocks: Mapping[str, Block]) -> _Values:
    """Return what holds for a tensor; what a model has of its own goes before what holds for all."""
    parameters = dict(recipe.parameters)
    own = [dict(model.parameters) for model in recipe.models]
    weights: Sequence[float | tuple[float, ...]] = [model.weight for model in recipe.models]
    for override in recipe.overrides:
        if fnmatchcase(name, override.match):
            parameters = _put(parameters, override.parameters)
            changed = override.weights or [None] * len(weights)
            weights = [old if new is None else new for old, new in zip(weights, changed, strict=True)]
            own = [old | (new or {}) for old, new in zip(own, override.models or [None] * len(own), strict=True)]
    depth = depth_of(name, blocks)

    return _Values(
        _settle(parameters, depth),
        tuple(interpolate(weight, depth) if isinstance(weight, tuple) else weight for weight in weights),
        tuple(_settle({**parameters, **one}, depth) for one in own) if any(own) else (),
    )


def _put(parameters: Mapping[str, JsonValue], changed: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return parameters with changed ones in their place; of a method inside those of its parameters that differ."""
    put = dict(parameters)
    for name, value in changed.items():
        old = put.get(name)
        inside = value.get("parameters") if isinstance(value, dict) else None
        if _is_nested(old) and isinstance(inside, dict):
            put[name] = {**old, "parameters": {**old["parameters"], **inside}}
        else:
            put[name] = value
    return put


def _settle(values: Mapping[str, JsonValue], depth: float) -> dict[str, JsonValue]:
    return {name: _at_depth(value, depth) for name, value in values.items()}


def _at_depth(value: JsonValue, depth: float) -> JsonValue:
    if _is_nested(value):
        return {**value, "parameters": _settle(value["parameters"], depth)}
    return interpolate(value, depth) if _is_gradient(value) else value


def _is_nested(value: object) -> TypeGuard[dict[str, Any]]:  # JSON values by name
    """Tell whether a value is a method inside the method, with parameters of its own."""
    if not isinstance(value, dict) or not isinstance(value.get("method"), str):
        return False
    return isinstance(value.get("parameters"), dict)


def _is_gradient(value: object) -> TypeGuard[Sequence[float]]:
    """Tell whether a value is a list of numbers; lists of anything else are what a method takes as they are."""
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return all(isinstance(step, (int, float)) and not isinstance(step, bool) for step in value)
