"""Makes a base model and fine-tuned ones of Llama's shape, bfloat16, random but repeatable.

A fine-tuned model is the base plus noise of a twentieth of the weights' size, and three entries in ten are untouched,
as fine-tuning in bfloat16 leaves them. A tensor's stream is seeded by its name and model, not by its place in a file.
"""

import argparse
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

SIZE_OF_WEIGHTS = 0.02
SIZE_OF_CHANGES = 0.05  # of the weights'
UNTOUCHED_BELOW = 0.385  # standard deviations: three in ten
SHARD_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield name and shape of every tensor."""
        width, kv_width = self.hidden, self.hidden // self.heads * self.kv_heads
        yield "model.embed_tokens.weight", (self.vocabulary, width)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            yield f"{prefix}.self_attn.q_proj.weight", (width, width)
            yield f"{prefix}.self_attn.k_proj.weight", (kv_width, width)
            yield f"{prefix}.self_attn.v_proj.weight", (kv_width, width)
            yield f"{prefix}.self_attn.o_proj.weight", (width, width)
            yield f"{prefix}.mlp.gate_proj.weight", (self.intermediate, width)
            yield f"{prefix}.mlp.up_proj.weight", (self.intermediate, width)
            yield f"{prefix}.mlp.down_proj.weight", (width, self.intermediate)
            yield f"{prefix}.input_layernorm.weight", (width,)
            yield f"{prefix}.post_attention_layernorm.weight", (width,)
        yield "model.norm.weight", (width,)
        yield "lm_head.weight", (self.vocabulary, width)

    @property
    def config(self) -> dict[str, object]:
        """The config.json that transformers would write."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
            "hidden_act": "silu",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        }


SHAPES = {
    "tiny": Shape(256, 688, 4, 4, 2, 1000),
    "0.1b": Shape(768, 2048, 12, 12, 4, 32000),
    "1.1b": Shape(2048, 5632, 22, 32, 4, 32000),
}


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
        base = {tensor: _draw_weights(seed, tensor, size) for tensor, size in shard}
        save_file(base, folder / "base" / file, {"format": "pt"})
        for name in names[1:]:
            tuned = {tensor: _fine_tune(weights, seed, name, tensor) for tensor, weights in base.items()}
            save_file(tuned, folder / name / file, {"format": "pt"})


def _shards(shape: Shape) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    shard: list[tuple[str, tuple[int, ...]]] = []
    filled = 0
    for name, size in shape.tensors():
        if shard and filled + 2 * prod(size) > SHARD_BYTES:
            yield shard
            shard, filled = [], 0
        shard.append((name, size))
        filled += 2 * prod(size)
    yield shard


def _file(index: int, n_files: int) -> str:
    return "model.safetensors" if n_files == 1 else f"model-{index + 1:05d}-of-{n_files:05d}.safetensors"


def _noise(seed: int, model: str, tensor: str, size: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{model}/{tensor}".encode()))
    return torch.randn(size, generator=generator)


def _draw_weights(seed: int, tensor: str, size: tuple[int, ...]) -> Tensor:
    around = 1.0 if "norm" in tensor else 0.0
    return _noise(seed, "base", tensor, size).mul_(SIZE_OF_WEIGHTS).add_(around).bfloat16()


def _fine_tune(weights: Tensor, seed: int, model: str, tensor: str) -> Tensor:
    noise = _noise(seed, model, tensor, tuple(weights.shape))
    noise = torch.nn.functional.hardshrink(noise, UNTOUCHED_BELOW)
    return noise.mul_(SIZE_OF_WEIGHTS * SIZE_OF_CHANGES).add_(weights).bfloat16()


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
