"""Which parameters and weights hold for which tensors: overrides by glob, gradients over the depth.

Tensors with the same parameters and weights form a group. What a method counts over the whole model ("global") it
counts within a group; a recipe without overrides and gradients has one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeGuard

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


def group_tensors(recipe: Recipe, names: Sequence[str]) -> tuple[TensorGroup, ...]:
    """Return the groups of the merged tensors, by the first name of each.

    Raises: Invalid for an override that matches none of the names, or a gradient where no blocks are numbered.
    """
    _check_matches(recipe.overrides, names)
    blocks = find_blocks(names)
    if not blocks and _has_gradients(recipe):
        message = "a list of numbers is interpolated over the depth, but no tensor's name numbers the model's blocks"
        raise Invalid(f"{recipe.method}: {message}. Give one number.", errors=[FieldProblem("/parameters", message)])
    groups: dict[str, tuple[list[str], dict[str, JsonValue], tuple[float, ...]]] = {}
    for name in sorted(names):
        parameters, weights = _of_tensor(recipe, name, blocks)
        key = digest_json([parameters, list(weights)])
        groups.setdefault(key, ([], parameters, weights))[0].append(name)
    return tuple(TensorGroup(tuple(members), parameters, weights) for members, parameters, weights in groups.values())


def _check_matches(overrides: Sequence[Override], names: Sequence[str]) -> None:
    faults = [
        FieldProblem(f"/overrides/{index}/match", f"{override.match!r} matches none of the {len(names)} merged tensors")
        for index, override in enumerate(overrides)
        if not any(fnmatchcase(name, override.match) for name in names)
    ]
    if faults:
        raise Invalid(f"{faults[0].pointer}: {faults[0].message}. Correct it or leave it out.", errors=faults)


def _has_gradients(recipe: Recipe) -> bool:
    values = [value for one in recipe.overrides for value in one.parameters.values()]
    weights = [weight for one in recipe.overrides for weight in one.weights or () if weight is not None]
    return any(_is_gradient(value) for value in (*recipe.parameters.values(), *values, *weights))


def _of_tensor(
    recipe: Recipe, name: str, blocks: Mapping[str, Block]
) -> tuple[dict[str, JsonValue], tuple[float, ...]]:
    parameters = dict(recipe.parameters)
    weights: Sequence[float | tuple[float, ...]] = [model.weight for model in recipe.models]
    for override in recipe.overrides:
        if fnmatchcase(name, override.match):
            parameters |= override.parameters
            changed = override.weights or [None] * len(weights)
            weights = [old if new is None else new for old, new in zip(weights, changed, strict=True)]
    depth = depth_of(name, blocks)
    return (
        {key: _at_depth(value, depth) for key, value in parameters.items()},
        tuple(interpolate(weight, depth) if isinstance(weight, tuple) else weight for weight in weights),
    )


def _at_depth(value: JsonValue, depth: float) -> JsonValue:
    return interpolate(value, depth) if _is_gradient(value) else value


def _is_gradient(value: object) -> TypeGuard[Sequence[float]]:
    """Tell whether a value is a list of numbers; lists of anything else are what a method takes as they are."""
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return all(isinstance(step, (int, float)) and not isinstance(step, bool) for step in value)
