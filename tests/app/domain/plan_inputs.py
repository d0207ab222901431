"""Recipes, cards and manifests for tests of planning: headers only, nothing on disk."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from app.domain.catalog import MethodCard
from app.domain.checkpoints import DTYPE_BYTES, FileEntry, Manifest, TensorSpec
from app.domain.recipes import PinnedCheckpoint, Recipe, RecipeModel

Layout = Mapping[str, tuple[int, ...] | tuple[str, tuple[int, ...]]]  # shape, or (dtype, shape)

PINNED = PinnedCheckpoint(content_digest="c" * 64, weights_digest="d" * 64)


def manifest_of(layout: Layout, *, dtype: str = "F32", tied: Sequence[tuple[str, ...]] = ()) -> Manifest:
    """Return a manifest of one file that holds the layout's tensors."""
    tensors: list[TensorSpec] = []
    position = 0
    for name in sorted(layout):
        kind, shape = _describe(layout[name], dtype)
        end = position + prod(shape) * DTYPE_BYTES[kind]
        tensors.append(
            TensorSpec(name=name, dtype=kind, shape=shape, file="model.safetensors", begin=position, end=end)
        )
        position = end
    files = (
        FileEntry(path="config.json", size_bytes=100, sha256="a" * 64),
        FileEntry(path="model.safetensors", size_bytes=position, sha256="b" * 64),
    )
    return Manifest(files=files, tensors=tuple(tensors), weights_digest="d" * 64, tied=tuple(tied))


def recipe_of(n_models: int = 1, *, has_base: bool = True, **changes: Any) -> Recipe:
    """Return a recipe of task arithmetic over n models."""
    values = {
        "method": "task_arithmetic",
        "method_version": 1,
        "base_model": PINNED if has_base else None,
        "models": tuple(RecipeModel(**PINNED.model_dump()) for _ in range(n_models)),
        "parameters": {"scaling_coefficient": 0.3},
        "shard_bytes": 5_000_000_000,
        **changes,
    }
    return Recipe.model_validate(values)


def card_of(**changes: Any) -> MethodCard:
    """Return the card of a method that needs a base model and is cut anywhere."""
    values = {
        "name": "task_arithmetic", "version": 1, "title": "", "summary": "", "source": "", "base_model": "required",
        "min_models": 1, "weights": "any", "granularity": "element", "parameters": {}, **changes,
    }  # fmt: skip
    return MethodCard.model_validate(values)


def _describe(entry: Any, dtype: str) -> tuple[str, tuple[int, ...]]:
    is_described = bool(entry) and isinstance(entry[0], str)
    return (entry[0], tuple(entry[1])) if is_described else (dtype, tuple(entry))
