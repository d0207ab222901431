"""Runnable image models: a checkpoint folder becomes an image encoder or classifier with its image processor.

Resizing, cropping and normalization are those of the checkpoint's preprocessor_config.json, done with Pillow. How an
image becomes a feature is told in workers/evaluators; loading is as in workers/checkpoints/model.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    BaseImageProcessor,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import ModelNotRunnable
from workers.checkpoints.model import class_names, count_embedded, load_module, load_tokenizer, without_path

PROCESSOR_FILE = "preprocessor_config.json"
_EMBEDDINGS = frozenset({"embeddings", "embedder"})  # modules that embed an image, as architectures call them


@dataclass(frozen=True)
class ImageEncoder:
    """A model of images in float32 and evaluation mode, and the image processor that belongs to it."""

    module: PreTrainedModel
    processor: BaseImageProcessor

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the model's input for RGB images, [n, channels, height, width], on its device."""
        batch = self.processor(images=list(images), return_tensors="pt")
        pixels: Tensor = batch["pixel_values"]
        return pixels.to(self.module.device)

    @property
    def embedding_parameters(self) -> frozenset[str]:
        """Names of the parameters that embed the input: patches, positions and what stands beside them."""
        names = (name for name, _ in self.module.named_parameters())
        return frozenset(name for name in names if _EMBEDDINGS & set(name.split(".")))

    @property
    def text_parameters(self) -> frozenset[str]:
        """Names of the parameters that no feature of an image depends on: the text side of CLIP and its kin."""
        if not hasattr(self.module, "get_image_features"):
            return frozenset()
        names = (name for name, _ in self.module.named_parameters())
        return frozenset(name for name in names if name.startswith("text_") or "." not in name)


@dataclass(frozen=True)
class ImageClassifier(ImageEncoder):
    """A model with its own classification head; `labels` are the names of its logits, in order."""

    labels: tuple[str, ...]


@dataclass(frozen=True)
class TextTower:
    """The side of a model of images and texts (CLIP and its kin) that makes features of texts."""

    module: Any  # the library's models of images and texts share no type
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the tower's input for texts, each [n, max_tokens], on its device; longer texts are cut."""
        batch = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        taken = {name: tensor for name, tensor in batch.items() if name in ("input_ids", "attention_mask")}
        return {name: tensor.to(self.module.device) for name, tensor in taken.items()}


def load_image_encoder(checkpoint: LocalCheckpoint, device: torch.device) -> ImageEncoder:
    """Load a checkpoint's image encoder; a classification head in its files is left aside.

    Raises: ModelNotRunnable when the files do not make an image encoder with a processor.
    """
    names = {tensor.name for tensor in checkpoint.manifest.tensors}
    is_projected = checkpoint.manifest.model_type == "clip_vision_model" and "visual_projection.weight" in names
    module = load_module(CLIPVisionModelWithProjection if is_projected else AutoModel, checkpoint, device)
    if module.main_input_name != "pixel_values" and not hasattr(module, "get_image_features"):
        raise ModelNotRunnable(
            f"The checkpoint is a {type(module).__name__}; expected a model of images (ViT, CLIP and their kin). Use a "
            "checkpoint of such a model."
        )
    return ImageEncoder(module, _load_processor(checkpoint))


def load_image_classifier(checkpoint: LocalCheckpoint, device: torch.device) -> ImageClassifier:
    """Load a checkpoint's image model with its own classification head.

    Raises: ModelNotRunnable when the files do not make an image classifier with a processor.
    """
    module = load_module(AutoModelForImageClassification, checkpoint, device)
    return ImageClassifier(module, _load_processor(checkpoint), class_names(module))


def load_text_tower(checkpoint: LocalCheckpoint, device: torch.device) -> TextTower:
    """Load the text side of a model of images and texts.

    Raises: ModelNotRunnable for a checkpoint without one, or without its tokenizer.
    """
    module: Any = load_module(AutoModel, checkpoint, device)
    if not hasattr(module, "get_text_features"):
        raise ModelNotRunnable(
            f"The head's base model is a {type(module).__name__}, which has no text tower; label prompts of images "
            "need one (CLIP and its kin). Name such a checkpoint as head.base_model, or make a task with another head."
        )
    tokenizer = load_tokenizer(checkpoint, n_embedded=count_embedded(module.text_model))
    return TextTower(module, tokenizer, int(module.config.text_config.max_position_embeddings))


def _load_processor(checkpoint: LocalCheckpoint) -> BaseImageProcessor:
    if not (checkpoint.path / PROCESSOR_FILE).is_file():
        raise ModelNotRunnable(
            f"The checkpoint has no {PROCESSOR_FILE}, which says how images are resized and normalized. Register it "
            "again with this file beside the weights."
        )
    try:
        processor: BaseImageProcessor = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            checkpoint.path, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the library raises a dozen unrelated classes on a bad config
        raise ModelNotRunnable(
            f"The checkpoint's image processor cannot be loaded: {without_path(error, checkpoint.path)}. Check its "
            f"{PROCESSOR_FILE}."
        ) from error
    return processor
