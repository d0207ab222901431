"""The models that are merged: a base and three fine-tunings of every kind of tensor, float32, seeded, without ties."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

SEED = 20261122
N_MODELS = 3
FLOATS: dict[str, tuple[int, ...]] = {
    "encoder.attention.bias": (16,),
    "encoder.attention.weight": (16, 16),
    "encoder.conv.weight": (4, 2, 3, 3),
    "encoder.norm.bias": (3,),
    "encoder.norm.weight": (16,),
    "encoder.scale": (),
    "model.embed_tokens.weight": (40, 16),
}
TIED = "lm_head.weight"  # a second name of the embeddings
INTEGERS = "encoder.position_ids"
LINEAR = "encoder.attention.weight"
N_SEEN = 64  # inputs of the linear layer, more than it has columns


def write_inputs(folder: Path) -> tuple[Path, list[Path]]:
    """Write base and models as checkpoint folders; return them."""
    generator = torch.Generator().manual_seed(SEED)
    base = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in FLOATS.items()}
    # wide enough apart that slerp has an angle to walk
    models = [
        {name: tensor + 0.03 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
        for _ in range(N_MODELS)
    ]
    paths = [folder / "base", *(folder / f"model-{index}" for index in range(N_MODELS))]
    for path, tensors in zip(paths, [base, *models], strict=True):
        _write(path, tensors)
    return paths[0], paths[1:]


def write_given_statistics(folder: Path) -> dict[str, list[Path]]:
    """Write what merges that look at data would measure of each model; return the files by kind.

    fisher: squares of very different size, none of the scalar, which fusion-bench cannot take. gram: of the linear
    layer's inputs.
    """
    generator = torch.Generator().manual_seed(SEED + 1)
    found: dict[str, list[Path]] = {"fisher": [], "gram": []}
    (folder / "statistics").mkdir()
    for index in range(N_MODELS):
        squares = {
            name: (0.01 * torch.randn(shape, generator=generator).exp()).square()
            for name, shape in FLOATS.items()
            if shape
        }
        seen = torch.randn(N_SEEN, FLOATS[LINEAR][1], generator=generator)
        for kind, tensors in (("fisher", squares), ("gram", {LINEAR: seen.T @ seen / N_SEEN})):
            found[kind].append(folder / "statistics" / f"{kind}-{index}.safetensors")
            save_file(tensors, found[kind][-1])
    return found


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    path.mkdir(parents=True)
    complete = {
        **tensors,
        TIED: tensors["model.embed_tokens.weight"].clone(),
        INTEGERS: torch.arange(16).view(1, 16),
    }
    save_file(complete, path / "model.safetensors", metadata={"format": "pt"})
    config = {"architectures": ["Toy"], "model_type": "toy", "tie_word_embeddings": True}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
