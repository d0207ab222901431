"""The shapes of models that are generated: names and sizes of tensors, dtype, config, and what fine-tuning changed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Protocol

import torch


@dataclass(frozen=True)
class Changes:
    """How far fine-tuning moves a tensor: noise, in units of the weights' size, drawn per tensor between two sizes."""

    smallest: float
    largest: float
    untouched_below: float = 0.0  # standard deviations of the noise that leave an entry as it is


class Shape(Protocol):
    """What is generated."""

    dtype: ClassVar[torch.dtype]
    changes: ClassVar[Changes]

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield name and shape of every tensor."""

    @property
    def config(self) -> Mapping[str, object]:
        """The config.json that transformers would write."""


@dataclass(frozen=True)
class Llama:
    """A Llama's, in bfloat16: fine-tuning in that dtype leaves three entries in ten untouched."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    dtype: ClassVar[torch.dtype] = torch.bfloat16
    changes: ClassVar[Changes] = Changes(0.05, 0.05, untouched_below=0.385)

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
    def config(self) -> Mapping[str, object]:
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


@dataclass(frozen=True)
class ClipVision:
    """The vision tower of a CLIP, in float32, its projection included."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    patch: int
    image: int
    projection: int
    dtype: ClassVar[torch.dtype] = torch.float32
    changes: ClassVar[Changes] = Changes(0.005, 0.05)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield name and shape of every tensor."""
        width = self.hidden
        yield "vision_model.embeddings.class_embedding", (width,)
        yield "vision_model.embeddings.patch_embedding.weight", (width, 3, self.patch, self.patch)
        yield "vision_model.embeddings.position_embedding.weight", (1 + (self.image // self.patch) ** 2, width)
        yield from _with_bias("vision_model.pre_layrnorm", (width,))  # spelt so
        for layer in range(self.layers):
            prefix = f"vision_model.encoder.layers.{layer}"
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield from _with_bias(f"{prefix}.self_attn.{name}", (width, width))
            yield from _with_bias(f"{prefix}.mlp.fc1", (self.intermediate, width))
            yield from _with_bias(f"{prefix}.mlp.fc2", (width, self.intermediate))
            yield from _with_bias(f"{prefix}.layer_norm1", (width,))
            yield from _with_bias(f"{prefix}.layer_norm2", (width,))
        yield from _with_bias("vision_model.post_layernorm", (width,))
        yield "visual_projection.weight", (self.projection, width)

    @property
    def config(self) -> Mapping[str, object]:
        """The config.json that transformers would write."""
        return {
            "architectures": ["CLIPVisionModelWithProjection"],
            "model_type": "clip_vision_model",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "patch_size": self.patch,
            "image_size": self.image,
            "projection_dim": self.projection,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "torch_dtype": "float32",
        }


@dataclass(frozen=True)
class OneMatrix:
    """One matrix and next to nothing beside it, in float32."""

    rows: int
    columns: int
    dtype: ClassVar[torch.dtype] = torch.float32
    changes: ClassVar[Changes] = Changes(0.005, 0.05)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield name and shape of every tensor."""
        yield "layer.weight", (self.rows, self.columns)
        yield "layer.bias", (16,)

    @property
    def config(self) -> Mapping[str, object]:
        """No model of transformers' has this shape."""
        return {"architectures": ["OneMatrix"], "model_type": "one_matrix"}


def _with_bias(module: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{module}.weight", shape
    yield f"{module}.bias", shape[:1]


SHAPES: Mapping[str, Shape] = {
    "tiny": Llama(256, 688, 4, 4, 2, 1000),
    "0.1b": Llama(768, 2048, 12, 12, 4, 32000),
    "1.1b": Llama(2048, 5632, 22, 32, 4, 32000),
    "3b": Llama(3200, 8640, 26, 32, 32, 32000),  # 3.4 billion, as OpenLLaMA 3B
    "clip-tiny": ClipVision(64, 256, 2, 4, 32, 224, 32),
    "clip": ClipVision(768, 3072, 12, 12, 32, 224, 512),  # ViT-B/32
}


def n_elements(shape: Shape) -> int:
    """Return how many parameters a model of this shape has."""
    return sum(prod(size) for _, size in shape.tensors())
