"""CLIPs and ViTs of a few hundred parameters that see images of 8 x 8 pixels, and a task of dark and bright images."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

from app.domain.tasks import Head, LabelPromptsHead, LocalTask
from tests.workers import tiny_bert

CLASSES = ("dark", "bright")
PROMPTS = ("cat", "the dog")
TOWER = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
SIDE = 8


def make_clip(folder: Path, *, seed: int = 0) -> Path:
    """Write a CLIP with both towers, its tokenizer and its image processor."""
    torch.manual_seed(seed)
    _clip().save_pretrained(folder)
    tiny_bert.make_tokenizer().save_pretrained(folder)
    _clip_processor().save_pretrained(folder)
    return folder


def make_clip_tower(folder: Path, *, is_projected: bool, seed: int = 0) -> Path:
    """Write the image tower of `make_clip` alone, with or without its projection."""
    torch.manual_seed(seed)
    clip: Any = _clip()
    kind = CLIPVisionModelWithProjection if is_projected else CLIPVisionModel
    tower = kind(clip.config.vision_config)
    names = tower.state_dict().keys()
    whole = {name: value for name, value in clip.state_dict().items() if name.startswith("vis")}
    found = {name: whole.get(name, whole.get(f"vision_model.{name}")) for name in names}
    tower.load_state_dict(found)
    tower.save_pretrained(folder)
    _clip_processor().save_pretrained(folder)
    return folder


def make_vit(folder: Path, *, seed: int = 0) -> Path:
    """Write a ViT without a head, and its image processor."""
    torch.manual_seed(seed)
    ViTModel(_vit_config()).save_pretrained(folder)
    _vit_processor().save_pretrained(folder)
    return folder


def make_vit_classifier(folder: Path, labels: tuple[str, ...], *, seed: int = 0) -> Path:
    """Write a ViT with a classification head for the labels, and its image processor."""
    torch.manual_seed(seed)
    ViTForImageClassification(_vit_config(id2label=dict(enumerate(labels)))).save_pretrained(folder)
    _vit_processor().save_pretrained(folder)
    return folder


def make_images(n: int = 12, *, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images [n, 8, 8, 3], every other one bright, and their labels [n]."""
    draw = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    pixels = draw.integers(0, 128, size=(n, SIDE, SIDE, 3)) + 127 * labels[:, None, None, None]
    return pixels.astype(np.uint8), labels


def encode(pixels: NDArray[np.uint8], form: str = "PNG") -> bytes:
    """Return an image as a file holds it."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def make_task(folder: Path, *, head: Head | None = None, **changes: Any) -> LocalTask:
    """Write the splits of the task 'dark or bright' as JSON lines and return it."""
    files: dict[str, Path] = {}
    for seed, split in enumerate(("train", "validation", "test")):
        pixels, labels = make_images(seed=seed)
        rows = [
            {"image": base64.b64encode(encode(one)).decode(), "label": label}
            for one, label in zip(pixels, labels.tolist(), strict=True)
        ]
        files[split] = tiny_bert.write_rows(folder / f"{split}.jsonl", rows)
    fields: dict[str, Any] = {
        "name": "brightness",
        "kind": "image-classification",
        "columns": {"input": "image"},
        "classes": CLASSES,
        "head": head or LabelPromptsHead(kind="label_prompts", prompts=PROMPTS),
    }
    return tiny_bert.as_task(files, **{**fields, **changes})


def _clip() -> CLIPModel:
    text = TOWER | {"vocab_size": 16, "max_position_embeddings": 12, "bos_token_id": 2, "eos_token_id": 3}
    vision = TOWER | {"image_size": SIDE, "patch_size": 4, "projection_dim": 6}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6))


def _clip_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def _vit_config(**changes: object) -> ViTConfig:
    return ViTConfig(**{**TOWER, "image_size": SIDE, "patch_size": 4, **changes})  # type: ignore[arg-type]


def _vit_processor() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
