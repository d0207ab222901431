"""Stores what one part of a merge has tallied: per tensor, the results of a statistic's pass, replayed elsewhere.

A JSON tree in which arrays are places in the bytes behind it: 8 bytes with the tree's length, the tree, the arrays.
Results are numbers, text, tuples, lists, dicts, arrays, tensors, and frozen dataclasses of our own: those alone are
made again from a file, by the names of their fields. No pickle: reading a file runs no code but theirs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.domain.errors import JobInternal

Tallies = Mapping[str, Sequence[object]]  # tensor -> results in the order of its pieces
PREFIX_BYTES = 8
OURS = "workers."


def write_tallies(path: Path, tallies: Tallies, folded: Sequence[object] = ()) -> None:
    """Write the tallies of a pass, and what has been made of those of earlier passes."""
    arrays: list[np.ndarray[Any, Any]] = []
    tree = json.dumps(
        {
            "folded": [_pack(one, arrays) for one in folded],
            "tallies": {name: [_pack(one, arrays) for one in tallies[name]] for name in tallies},
        }
    )
    encoded = tree.encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(PREFIX_BYTES, "little"))
        file.write(encoded)
        for array in arrays:
            file.write(array.tobytes())


def read_tallies(path: Path) -> tuple[Tallies, list[object]]:
    """Return the tallies of a pass, and what had been made of those of earlier passes."""
    content = path.read_bytes()
    begin = PREFIX_BYTES + int.from_bytes(content[:PREFIX_BYTES], "little")
    document = json.loads(content[PREFIX_BYTES:begin])
    reader = _Arrays(content, begin)
    folded = [_unpack(one, reader) for one in document["folded"]]
    return {name: [_unpack(one, reader) for one in results] for name, results in document["tallies"].items()}, folded


class _Arrays:
    """Cuts arrays off the bytes behind the tree, in the order in which the tree names them."""

    def __init__(self, content: bytes, position: int) -> None:
        self._content = content
        self._position = position

    def next(self, dtype: str, shape: Sequence[int]) -> np.ndarray[Any, Any]:
        """Return the next array, in memory of its own."""
        found = np.frombuffer(self._content, dtype=dtype, count=prod(shape), offset=self._position).copy()
        self._position += found.nbytes
        return found if len(shape) == 1 else found.reshape(shape)


def _pack(value: object, arrays: list[np.ndarray[Any, Any]]) -> object:
    if value is None or isinstance(value, (bool, str)) or type(value) in (int, float):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        arrays.append(np.ascontiguousarray(value))
        return {"array": [arrays[-1].dtype.str, list(np.shape(value))], "is": type(value).__name__}
    if isinstance(value, Tensor):
        arrays.append(value.detach().cpu().contiguous().numpy())
        return {"array": [arrays[-1].dtype.str, list(value.shape)], "is": "tensor"}
    if is_dataclass(value) and not isinstance(value, type) and type(value).__module__.startswith(OURS):
        own = {field.name: _pack(getattr(value, field.name), arrays) for field in fields(value)}
        return {"class": f"{type(value).__module__}:{type(value).__qualname__}", "fields": own}
    if isinstance(value, (tuple, list)):
        return {"tuple" if isinstance(value, tuple) else "list": [_pack(one, arrays) for one in value]}
    if isinstance(value, Mapping):
        return {"dict": [[_pack(key, arrays), _pack(one, arrays)] for key, one in value.items()]}
    raise JobInternal(f"a statistic gave {type(value).__name__}, which no file of tallies holds; report this fault.")


def _unpack(node: Any, arrays: _Arrays) -> object:  # Any: a tree of JSON
    if not isinstance(node, dict):
        return node
    if "array" in node:
        found = arrays.next(*node["array"])
        if node["is"] == "tensor":
            return torch.from_numpy(found)
        return found if node["is"] == "ndarray" else found[()]
    if "tuple" in node:
        return tuple(_unpack(one, arrays) for one in node["tuple"])
    if "list" in node:
        return [_unpack(one, arrays) for one in node["list"]]
    if "dict" in node:
        return {_unpack(key, arrays): _unpack(one, arrays) for key, one in node["dict"]}
    return _class_of(node["class"])(**{name: _unpack(one, arrays) for name, one in node["fields"].items()})


@cache
def _class_of(place: str) -> type[Any]:
    module, _, name = place.partition(":")
    found = getattr(import_module(module), name, None) if module.startswith(OURS) else None
    if not isinstance(found, type) or not is_dataclass(found):
        raise JobInternal(f"{place!r} is no class that tallies hold; the file is damaged, or of another release.")
    return found
