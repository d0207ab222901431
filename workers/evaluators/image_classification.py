"""Image classification with an encoder of images: which of the task's classes does an image belong to?

Label prompts make it the zero-shot classifier of CLIP: class vectors come from the text tower of the base model, image
features from the checkpoint, so one merged image tower serves every task. Prototypes and linear heads serve encoders
without a text tower, and a classifier has its own head.

Source: Radford et al. 2021, arXiv:2103.00020, section 3.1.4: the mean of the prompts' embeddings over templates.
Departs from source: the scale of the cosines is the task's, not the checkpoint's logit_scale.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from app.domain.errors import HeadMismatch
from app.domain.parameters import Parameters
from app.domain.tasks import LabelPromptsHead, LocalTask, Measurement, PrototypesHead
from workers import classification, heads, surgery
from workers.checkpoints.vision import (
    ImageClassifier,
    ImageEncoder,
    TextTower,
    load_image_classifier,
    load_image_encoder,
    load_text_tower,
)
from workers.classification import Opened
from workers.datasets.images import LabeledImages, read_labeled_images
from workers.heads import OfExamples
from workers.model_contract import ModelSource, Probe, Subject, Trainable, evaluator
from workers.numerics import features as feature_math


class ImagePreprocessing(Parameters):
    """How an image becomes a feature; resizing and normalization are those of the checkpoint's processor."""

    batch_size: int = Field(default=32, ge=1, le=4096, description="Images run at once when measuring.")
    pooling: Literal["cls", "mean"] = Field(
        default="cls",
        description="Feature of an image: its first token, or the mean of all; CLIP's towers have their own.",
    )
    normalize: bool = Field(
        default=True, description="Give features length 1 before a linear head; the heads made of cosines always do."
    )
    templates: list[str] = Field(
        default=["{}"],
        min_length=1,
        max_length=256,
        description="What label prompts are put into, at {}; a class vector is the mean over the templates.",
    )


def open_(subject: Subject, split: str, models: ModelSource) -> Opened:
    """Open a checkpoint on one split of a task, under the task's head.

    Raises: InvalidDataset, InputChanged, ModelNotRunnable, HeadMismatch.
    """
    task = subject.task
    preprocessing = ImagePreprocessing.model_validate(task.spec.preprocessing)
    examples = read_labeled_images(task, split)
    n, size = len(examples), preprocessing.batch_size
    batches = tuple(range(start, min(start + size, n)) for start in range(0, n, size))
    model: ImageEncoder
    features: OfExamples | None = None
    if task.spec.head.kind == "own":
        model = classifier = models.open(subject.checkpoint, load_image_classifier)
        logits = _own_logits(task, classifier, examples)
    else:
        model = models.open(subject.checkpoint, load_image_encoder)
        found = _features_of(model, examples, preprocessing, _projection(subject, models, model))
        features = surgery.correct(found, subject.modules)
        logits = heads.put_on(features, _external_head(subject, models, preprocessing))
    surgery.attach(model.module, subject.modules, has_features=features is not None)
    return Opened(
        task=task,
        split=split,
        module=model.module,
        embeddings=model.embedding_parameters,
        labels=examples.labels,
        batches=lambda: batches,
        logits=logits,
        features=features,
        unreached=model.text_parameters,
    )


def make_trainable(subject: Subject, models: ModelSource) -> Trainable:
    """Open a checkpoint's image encoder, with its own head where the task has that, for training on the train split.

    Raises: HeadMismatch, InvalidDataset, InputChanged, ModelNotRunnable.
    """
    return classification.make_trainable(open_(subject, "train", models))


def open_probe(subject: Subject, split: str, models: ModelSource) -> Probe:
    """Open a checkpoint for learning on one split, under the task's head.

    Raises: HeadMismatch, InvalidDataset, InputChanged, ModelNotRunnable.
    """
    return classification.make_probe(open_(subject, split, models))


@evaluator(
    name="image-classification",
    title="Image classification",
    summary="Accuracy of an image encoder on labeled images: CLIP's prompts, prototypes, a linear or its own head.",
    source="Radford et al. 2021, arXiv:2103.00020, section 3.1",
    heads=("label_prompts", "prototypes", "linear", "own"),
    metrics=("accuracy", "f1", "matthews"),
    parameters=ImagePreprocessing,
    data_formats=("jsonl", "parquet", "npz", "zip"),
    make_trainable=make_trainable,
    trainable_heads=("label_prompts", "prototypes", "linear", "own"),
    open_probe=open_probe,
    has_class_logits=True,
)
def measure(
    subject: Subject, split: str, models: ModelSource, on_examples: Callable[[int, int], None]
) -> tuple[Measurement, ...]:
    """Return the task's metric, computed from counts over the whole split.

    Raises: InvalidDataset, InputChanged, ModelNotRunnable, HeadMismatch; NotFinite when the model gives no numbers.
    """
    return (classification.measure(open_(subject, split, models), on_examples),)


def _own_logits(task: LocalTask, classifier: ImageClassifier, examples: LabeledImages) -> OfExamples:
    module: Any = classifier.module  # its output is the architecture's own
    order = torch.tensor(heads.order_classes(task, classifier.labels), device=classifier.module.device)

    def logits(batch: Sequence[int]) -> Tensor:
        found: Tensor = module(pixel_values=classifier.pixels([examples.open(index) for index in batch])).logits
        return found[:, order]

    return logits


def _external_head(subject: Subject, models: ModelSource, preprocessing: ImagePreprocessing) -> heads.Head:
    task, head = subject.task, subject.task.spec.head
    if isinstance(head, LabelPromptsHead):
        tower = models.open(subject.base_model, load_text_tower)
        return heads.embed_prompts(task, head, lambda prompts: _embed_prompts(tower, prompts, preprocessing.templates))
    if isinstance(head, PrototypesHead):
        train = read_labeled_images(task, "train")
        base = models.open(subject.base_model, load_image_encoder)
        return heads.average_shots(task, head, train.labels, _features_of(base, train, preprocessing, None))
    return heads.read_linear(task, models.device, normalize=preprocessing.normalize)


def _embed_prompts(tower: TextTower, prompts: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Return the mean over the templates of each prompt's features of length 1, [n_classes, width]."""
    views = [
        feature_math.unit_norm(
            _as_features(
                tower.module.get_text_features(**tower.tokenize([template.replace("{}", prompt) for prompt in prompts]))
            )
        )
        for template in templates
    ]
    return torch.stack(views).mean(dim=0)


def _projection(subject: Subject, models: ModelSource, encoder: ImageEncoder) -> Callable[[Tensor], Tensor] | None:
    """Return the base model's projection of image features, for a CLIP image tower that was stored without its own."""
    head = subject.task.spec.head
    if not _is_bare_tower(encoder) or not subject.task.spec.head_needs_base:
        return None
    if isinstance(head, LabelPromptsHead):
        return getattr(models.open(subject.base_model, load_text_tower).module, "visual_projection", None)
    return getattr(models.open(subject.base_model, load_image_encoder).module, "visual_projection", None)


def _features_of(
    encoder: ImageEncoder,
    examples: LabeledImages,
    preprocessing: ImagePreprocessing,
    projection: Callable[[Tensor], Tensor] | None,
) -> OfExamples:
    """Return what makes features [n, width] of examples by their indices."""

    def features_of(batch: Sequence[int]) -> Tensor:
        pixels = encoder.pixels([examples.open(index) for index in batch])
        features = _features(encoder, pixels, preprocessing.pooling)
        return features if projection is None else projection(features)

    return features_of


def _features(encoder: ImageEncoder, pixels: Tensor, pooling: Literal["cls", "mean"]) -> Tensor:
    module: Any = encoder.module  # its output is the architecture's own
    if hasattr(module, "get_image_features"):
        return _as_features(module.get_image_features(pixel_values=pixels))
    output = module(pixel_values=pixels)
    if "image_embeds" in output:
        return _as_features(output.image_embeds)
    if _is_bare_tower(encoder):
        return _as_features(output)
    hidden: Tensor = output.last_hidden_state  # [n, t, width], or [n, width, height', width'] of a convolutional model
    if pooling == "mean":
        return hidden.mean(dim=1) if hidden.ndim == 3 else hidden.mean(dim=(2, 3))
    if hidden.ndim != 3:
        raise HeadMismatch(
            f"A {type(module).__name__} gives a grid without a first token; make a task with pooling 'mean' in its "
            "preprocessing."
        )
    return feature_math.first_pool(hidden)


def _is_bare_tower(encoder: ImageEncoder) -> bool:
    is_clip_tower: bool = encoder.module.config.model_type == "clip_vision_model"
    return is_clip_tower and not hasattr(encoder.module, "visual_projection")


def _as_features(found: Any) -> Tensor:
    # Any: the library's models give a tensor, or an output with one
    features: Tensor = getattr(found, "pooler_output", found)
    return features
