"""The config.json of a model that was put together from layers: how many there are, and what each of them is."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.domain.checkpoints import LocalCheckpoint
from app.domain.passthrough import Layer
from workers.checkpoints.config import CONFIG_FILE, MAX_CONFIG_BYTES
from workers.checkpoints.files import read_json
from workers.checkpoints.reader import path_of

COUNT_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
INNER = "text_config"  # of models with several parts
# Keys that name layers by their numbers, or count some of them: what they should be is not ours to guess.
NAMING_KEYS = ("max_window_layers", "mlp_only_layers", "first_k_dense_replace", "num_kv_shared_layers", "moe_layers")

Document = dict[str, Any]  # JSON


def read_configs(models: Sequence[LocalCheckpoint]) -> list[Document]:
    """Return the config.json of each model; an empty one where there is none."""
    return [_read(model) for model in models]


def with_layers(
    config: bytes, layers: Sequence[Layer], n_before: int, models: Sequence[Document]
) -> tuple[bytes, list[str]]:
    """Return a config.json for the layers, and what is to be said about it.

    The entries that count the layers, where they say `n_before`, and those that list something for each of them.
    """
    document: Document = json.loads(config)
    warnings: list[str] = []
    counted = [_rewrite(part, layers, n_before, others) for part, others in _parts(document, models)]
    if not any(counted):
        warnings.append(
            f"{CONFIG_FILE} does not say that the model had {n_before} layers, so it was not told that there are "
            f"{len(layers)} now; set the entry yourself."
        )
    for part, _ in _parts(document, models):
        warnings += [
            f"{CONFIG_FILE}: {key} is {part[key]} as before; check whether it fits the new layers."
            for key in NAMING_KEYS
            if part.get(key)
        ]
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n", warnings


def _rewrite(part: Document, layers: Sequence[Layer], n_before: int, models: Sequence[Document]) -> bool:
    """Change a part of the config in place; return whether it counts the layers."""
    count_keys = [key for key in COUNT_KEYS if part.get(key) == n_before]
    part.update(dict.fromkeys(count_keys, len(layers)))
    for key, value in part.items():
        if key not in NAMING_KEYS and "layer" in key and isinstance(value, list) and len(value) == n_before:
            part[key] = [_of_layer(models[layer.model].get(key, value), layer, value) for layer in layers]
    return bool(count_keys)


def _of_layer(values: Any, layer: Layer, otherwise: Sequence[Any]) -> Any:
    """Return what a model's list says of a layer; where it says nothing, what the reference's does."""
    given = values if isinstance(values, list) and layer.index < len(values) else otherwise
    return given[min(layer.index, len(given) - 1)]


def _parts(document: Document, models: Sequence[Document]) -> Iterator[tuple[Document, list[Document]]]:
    yield document, list(models)
    inner = document.get(INNER)
    if isinstance(inner, dict):
        yield inner, [_inner(model) for model in models]


def _inner(model: Mapping[str, Any]) -> Document:
    inner = model.get(INNER)
    return inner if isinstance(inner, dict) else {}


def _read(model: LocalCheckpoint) -> Document:
    path = path_of(model, CONFIG_FILE)
    return read_json(path, max_bytes=MAX_CONFIG_BYTES) if path.name == CONFIG_FILE and path.is_file() else {}
