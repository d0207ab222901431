"""Models for documents of mergekit's: a Llama of three small layers, since mergekit must know the architecture."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.parity.inputs import SEED

N_MODELS = 2


def write_deep_inputs(folder: Path) -> dict[str, Path]:
    """Write `base` and `model-0`, … as folders that transformers opens; return them by the refs of the documents."""
    generator = torch.Generator().manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    base = {name: 0.05 * torch.randn(tensor.shape, generator=generator) for name, tensor in model.state_dict().items()}
    paths: dict[str, Path] = {}
    for ref in ("base", *(f"model-{index}" for index in range(N_MODELS))):
        spread = 0.0 if ref == "base" else 0.03
        tensors = {name: one + spread * torch.randn(one.shape, generator=generator) for name, one in base.items()}
        model.load_state_dict(tensors)
        model.save_pretrained(folder / ref)
        paths[ref] = folder / ref
    return paths
