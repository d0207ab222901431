"""Text classification with an encoder: which of the task's classes does a text belong to?

A feature is the pooled last hidden state. The head turns it into logits: label prompts or prototypes (their features
under the base model are the class vectors, logits are scale x cosine), a linear head from a file, or the checkpoint's
own.

Source: Radford et al. 2021, arXiv:2103.00020, §3.1 (prompts as classifier), with a sentence encoder in CLIP's place.
Departs from source: one prompt per class, features of the same encoder on both sides, the scale is the task's.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from app.domain.errors import InvalidParameters
from app.domain.parameters import Parameters
from app.domain.tasks import LabelPromptsHead, LocalTask, Measurement, PrototypesHead
from workers import classification, heads, surgery
from workers.checkpoints.model import Classifier, Encoder, load_classifier, load_encoder
from workers.classification import Opened
from workers.datasets import text as text_datasets
from workers.datasets.text import LabeledTexts
from workers.heads import OfExamples
from workers.model_contract import ModelSource, Probe, Subject, Trainable, evaluator
from workers.numerics import features as feature_math


class TextPreprocessing(Parameters):
    """How a text becomes a feature."""

    max_characters: int = Field(default=400, ge=1, le=1_000_000, description="Texts are cut to this many characters.")
    max_tokens: int = Field(default=40, ge=2, le=131_072, description="Most tokens of a text, special tokens included.")
    batch_size: int = Field(default=32, ge=1, le=4096, description="Texts run at once when measuring.")
    pooling: Literal["mean", "cls"] = Field(
        default="mean", description="Feature of a text: mean over its tokens, or its first token."
    )
    normalize: bool = Field(
        default=True, description="Give features length 1 before a linear head; the heads made of cosines always do."
    )


def open_(subject: Subject, split: str, models: ModelSource) -> Opened:
    """Open a checkpoint on one split of a task, under the task's head.

    Raises: InvalidDataset, InputChanged, ModelNotRunnable, HeadMismatch.
    """
    task = subject.task
    preprocessing = TextPreprocessing.model_validate(task.spec.preprocessing)
    examples = text_datasets.read_labeled_texts(task, split, max_characters=preprocessing.max_characters)
    model: Encoder
    features: OfExamples | None = None
    if task.spec.head.kind == "own":
        model = classifier = models.open(subject.checkpoint, load_classifier)
        logits = _own_logits(task, classifier, examples, preprocessing)
    else:
        model = models.open(subject.checkpoint, load_encoder)
        features = surgery.correct(_features_of(model, examples, preprocessing), subject.modules)
        logits = heads.put_on(features, _external_head(subject, models, preprocessing))
    surgery.attach(model.module, subject.modules, has_features=features is not None)
    return Opened(
        task=task,
        split=split,
        module=model.module,
        embeddings=model.embedding_parameters,
        labels=examples.labels,
        batches=lambda: _batches(model, examples, preprocessing),
        logits=logits,
        features=features,
    )


def make_trainable(subject: Subject, models: ModelSource) -> Trainable:
    """Open a checkpoint's encoder, with its own head where the task has that, for training on the train split.

    Raises: HeadMismatch, InvalidDataset, InputChanged, ModelNotRunnable.
    """
    return classification.make_trainable(open_(subject, "train", models))


def open_probe(subject: Subject, split: str, models: ModelSource) -> Probe:
    """Open a checkpoint on one split, under the task's head.

    Raises: HeadMismatch, InvalidDataset, InputChanged, ModelNotRunnable.
    """
    return classification.make_probe(open_(subject, split, models))


@evaluator(
    name="text-classification",
    title="Text classification",
    summary="Accuracy of an encoder on labeled texts, with label prompts, prototypes, a linear head or its own head.",
    source="Radford et al. 2021, arXiv:2103.00020, section 3.1",
    heads=("label_prompts", "prototypes", "linear", "own"),
    metrics=("accuracy", "f1", "matthews"),
    parameters=TextPreprocessing,
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


def _external_head(subject: Subject, models: ModelSource, preprocessing: TextPreprocessing) -> heads.Head:
    task, head = subject.task, subject.task.spec.head
    if isinstance(head, LabelPromptsHead):
        base = models.open(subject.base_model, load_encoder)
        cut = preprocessing.max_characters
        return heads.embed_prompts(
            task, head, lambda prompts: _features(base, [prompt[:cut] for prompt in prompts], preprocessing)
        )
    if isinstance(head, PrototypesHead):
        base = models.open(subject.base_model, load_encoder)
        train = text_datasets.read_labeled_texts(task, "train", max_characters=preprocessing.max_characters)
        return heads.average_shots(task, head, train.labels, _features_of(base, train, preprocessing))
    return heads.read_linear(task, models.device, normalize=preprocessing.normalize)


def _own_logits(
    task: LocalTask, classifier: Classifier, examples: LabeledTexts, preprocessing: TextPreprocessing
) -> OfExamples:
    order = torch.tensor(heads.order_classes(task, classifier.labels), device=classifier.module.device)

    def logits(batch: Sequence[int]) -> Tensor:
        tokens = _tokens(classifier, [examples.texts[index] for index in batch], preprocessing)
        found: Tensor = classifier.module(**tokens).logits
        return found[:, order]

    return logits


def _features_of(encoder: Encoder, examples: LabeledTexts, preprocessing: TextPreprocessing) -> OfExamples:
    return lambda batch: _features(encoder, [examples.texts[index] for index in batch], preprocessing)


def _features(encoder: Encoder, texts: Sequence[str], preprocessing: TextPreprocessing) -> Tensor:
    """Return the pooled last hidden states, [n, width] float32."""
    tokens = _tokens(encoder, texts, preprocessing)
    hidden: Tensor = encoder.module(**tokens).last_hidden_state  # [n, t, width]
    if preprocessing.pooling == "cls":
        return feature_math.first_pool(hidden)
    return feature_math.mean_pool(hidden, tokens["attention_mask"])


def _batches(encoder: Encoder, examples: LabeledTexts, preprocessing: TextPreprocessing) -> list[list[int]]:
    """Return batches of texts of like numbers of tokens: so much is computed, characters are not."""
    counts = encoder.count_tokens(examples.texts, max_tokens=preprocessing.max_tokens)
    return list(text_datasets.batches_by_length(counts, preprocessing.batch_size))


def _tokens(encoder: Encoder, texts: Sequence[str], preprocessing: TextPreprocessing) -> dict[str, Tensor]:
    if preprocessing.max_tokens > encoder.max_tokens:
        raise InvalidParameters(
            f"preprocessing.max_tokens is {preprocessing.max_tokens}, the model has positions for "
            f"{encoder.max_tokens} tokens. Make a task with fewer."
        )
    return encoder.tokenize(texts, max_tokens=preprocessing.max_tokens)
