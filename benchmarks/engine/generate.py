"""Makes a base model and fine-tuned ones of some shape, random but repeatable.

A fine-tuned model is the base plus noise. A tensor's stream is seeded by its name and model, not by its place.
"""

import argparse
import json
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.engine.shapes import SHAPES, Changes, Shape

SIZE_OF_WEIGHTS = 0.02
SHARD_BYTES = 1_000_000_000


def generate(shape: Shape, folder: Path, *, n_models: int = 3, seed: int = 0) -> None:
    """Write folder/base, folder/model-1, … in shards with an index."""
    names = ["base", *(f"model-{index + 1}" for index in range(n_models))]
    shards = list(_shards(shape))
    files = [_file(index, len(shards)) for index in range(len(shards))]
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(shape.config, indent=1), encoding="utf-8")
        if len(files) > 1:
            placed = {tensor: file for file, shard in zip(files, shards, strict=True) for tensor, _ in shard}
            index = {"metadata": {}, "weight_map": placed}
            (folder / name / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    for file, shard in zip(files, shards, strict=True):
        base = {tensor: _draw_weights(seed, tensor, size).to(shape.dtype) for tensor, size in shard}
        save_file(base, folder / "base" / file, {"format": "pt"})
        for name in names[1:]:
            tuned = {tensor: _fine_tune(weights, seed, name, tensor, shape.changes) for tensor, weights in base.items()}
            save_file(tuned, folder / name / file, {"format": "pt"})


def _shards(shape: Shape) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    shard: list[tuple[str, tuple[int, ...]]] = []
    filled = 0
    for name, size in shape.tensors():
        n_bytes = shape.dtype.itemsize * prod(size)
        if shard and filled + n_bytes > SHARD_BYTES:
            yield shard
            shard, filled = [], 0
        shard.append((name, size))
        filled += n_bytes
    yield shard


def _file(index: int, n_files: int) -> str:
    return "model.safetensors" if n_files == 1 else f"model-{index + 1:05d}-of-{n_files:05d}.safetensors"


def _generator(seed: int, model: str, tensor: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{model}/{tensor}".encode()))


def _draw_weights(seed: int, tensor: str, size: tuple[int, ...]) -> Tensor:
    noise = torch.randn(size, generator=_generator(seed, "base", tensor))
    return noise.mul_(SIZE_OF_WEIGHTS).add_(1.0 if "norm" in tensor else 0.0)


def _fine_tune(weights: Tensor, seed: int, model: str, tensor: str, changes: Changes) -> Tensor:
    generator = _generator(seed, model, tensor)
    noise = torch.randn(weights.shape, generator=generator)
    noise = torch.nn.functional.hardshrink(noise, changes.untouched_below)
    share = float(torch.rand((), generator=generator))
    size = changes.smallest * (changes.largest / changes.smallest) ** share
    return noise.mul_(SIZE_OF_WEIGHTS * size).add_(weights).to(weights.dtype)


def main() -> None:
    """Generate a set of models from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    generate(SHAPES[arguments.shape], arguments.out, n_models=arguments.models)


if __name__ == "__main__":
    main()
