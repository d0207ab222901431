"""Text classification with an encoder: which of the task's classes does a text belong to?

A feature is the pooled last hidden state. The head turns it into logits: label prompts (their features under the base
model are the class vectors, logits are scale x cosine), a linear head from a file, or the checkpoint's own.

Source: Radford et al. 2021, arXiv:2103.00020, §3.1 (prompts as classifier), with a sentence encoder in CLIP's place.
Departs from source: one prompt per class, features of the same encoder on both sides, the scale is the task's.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from app.domain.errors import HeadMismatch, InputChanged, InvalidParameters, NotFinite
from app.domain.parameters import Parameters
from app.domain.tasks import LabelPromptsHead, LocalTask, Measurement
from workers.checkpoints.model import Classifier, Encoder
from workers.datasets import text as text_datasets
from workers.model_contract import ModelSource, Probe, Subject, Trainable, evaluator
from workers.numerics import features as feature_math

Logits = Callable[[Sequence[str]], Tensor]  # n texts -> [n, n_classes] float32


class TextPreprocessing(Parameters):
    """How a text becomes a feature."""

    max_characters: int = Field(default=400, ge=1, le=1_000_000, description="Texts are cut to this many characters.")
    max_tokens: int = Field(default=40, ge=2, le=131_072, description="Most tokens of a text, special tokens included.")
    batch_size: int = Field(default=32, ge=1, le=4096, description="Texts run at once when measuring.")
    pooling: Literal["mean", "cls"] = Field(
        default="mean", description="Feature of a text: mean over its tokens, or its first token."
    )
    normalize: bool = Field(
        default=True, description="Give features length 1 before a linear head; label prompts always do."
    )


def make_trainable(subject: Subject, models: ModelSource) -> Trainable:
    """Open a checkpoint's encoder for training on the task's train split, under the task's frozen head.

    Raises: HeadMismatch for a task with the checkpoint's own head; InvalidDataset, ModelNotRunnable.
    """
    task = subject.task
    if task.spec.head.kind == "own":
        raise HeadMismatch(
            f"Task {task.spec.name!r} has head 'own', which lies in each checkpoint; fine-tuning keeps heads frozen. "
            "Make a task with head 'label_prompts' or 'linear'."
        )
    preprocessing = TextPreprocessing.model_validate(task.spec.preprocessing)
    examples = text_datasets.read_labeled_texts(task, "train", max_characters=preprocessing.max_characters)
    encoder: Encoder = models.encoder(subject.checkpoint)
    head = _external_head(subject, models, preprocessing)
    labels = torch.tensor(examples.labels, device=models.device)

    def loss(batch: Sequence[int]) -> Tensor:
        features = _features(encoder, [examples.texts[index] for index in batch], preprocessing)
        return torch.nn.functional.cross_entropy(head(features), labels[list(batch)])

    return Trainable(
        module=encoder.module, embeddings=encoder.embedding_parameters, n_examples=len(examples), loss=loss
    )


def open_probe(subject: Subject, split: str, models: ModelSource) -> Probe:
    """Open a checkpoint on one split, under the task's head.

    Raises: HeadMismatch, InvalidDataset, InputChanged, ModelNotRunnable.
    """
    task = subject.task
    preprocessing = TextPreprocessing.model_validate(task.spec.preprocessing)
    examples = text_datasets.read_labeled_texts(task, split, max_characters=preprocessing.max_characters)
    logits = _open(subject, models, preprocessing)
    has_own_head = task.spec.head.kind == "own"
    opened: Encoder = models.classifier(subject.checkpoint) if has_own_head else models.encoder(subject.checkpoint)
    labels = torch.tensor(examples.labels, device=models.device)

    def logits_of(batch: Sequence[int]) -> Tensor:
        return logits([examples.texts[index] for index in batch])

    def losses_of(batch: Sequence[int]) -> Tensor:
        return torch.nn.functional.cross_entropy(logits_of(batch), labels[list(batch)], reduction="none")

    def features_of(batch: Sequence[int]) -> Tensor:
        return _features(opened, [examples.texts[index] for index in batch], preprocessing)

    return Probe(
        module=opened.module,
        n_examples=len(examples),
        logits=logits_of,
        losses=losses_of,
        features=None if has_own_head else features_of,
        labels=examples.labels,
        order=[index for batch in _batches_by_length(examples.texts, preprocessing.batch_size) for index in batch],
    )


@evaluator(
    name="text-classification",
    title="Text classification",
    summary="Accuracy of an encoder on labeled texts, with label prompts, a linear head or its own head.",
    source="Radford et al. 2021, arXiv:2103.00020, section 3.1",
    heads=("label_prompts", "linear", "own"),
    metrics=("accuracy",),
    parameters=TextPreprocessing,
    make_trainable=make_trainable,
    open_probe=open_probe,
)
def measure(
    subject: Subject, split: str, models: ModelSource, on_examples: Callable[[int, int], None]
) -> tuple[Measurement, ...]:
    """Return the accuracy with its standard error sqrt(p (1 - p) / n).

    Raises: InvalidDataset, InputChanged, ModelNotRunnable, HeadMismatch; NotFinite when the model gives no numbers.
    """
    task = subject.task
    preprocessing = TextPreprocessing.model_validate(task.spec.preprocessing)
    examples = text_datasets.read_labeled_texts(task, split, max_characters=preprocessing.max_characters)
    logits = _open(subject, models, preprocessing)
    n_correct = 0
    n_done = 0
    with torch.inference_mode():
        for batch in _batches_by_length(examples.texts, preprocessing.batch_size):
            found = logits([examples.texts[index] for index in batch])  # [n, n_classes]
            _refuse_not_finite(found, task)
            predicted = found.argmax(dim=-1).tolist()
            n_correct += sum(label == examples.labels[index] for label, index in zip(predicted, batch, strict=True))
            n_done += len(batch)
            on_examples(n_done, len(examples))
    return (_accuracy(task.id, split, n_correct, len(examples)),)


def _refuse_not_finite(logits: Tensor, task: LocalTask) -> None:
    if not bool(torch.isfinite(logits).all()):
        raise NotFinite(
            f"The checkpoint's logits on task {task.spec.name!r} are NaN or infinite, expected finite. Look for "
            "NaN in its weights, or merge with a smaller scaling_coefficient."
        )


def _accuracy(task: str, split: str, n_correct: int, n: int) -> Measurement:
    accuracy = n_correct / n
    stderr = (accuracy * (1 - accuracy) / n) ** 0.5
    return Measurement(task=task, name="accuracy", value=accuracy, split=split, n=n, stderr=stderr)


def _batches_by_length(texts: Sequence[str], batch_size: int) -> Iterator[list[int]]:
    # texts of like length together, so that little is padded; the index makes the order unique
    order = sorted(range(len(texts)), key=lambda index: (len(texts[index]), index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _open(subject: Subject, models: ModelSource, preprocessing: TextPreprocessing) -> Logits:
    if subject.task.spec.head.kind == "own":
        return _own_head(subject.task, models.classifier(subject.checkpoint), preprocessing)
    encoder: Encoder = models.encoder(subject.checkpoint)
    head = _external_head(subject, models, preprocessing)
    return lambda texts: head(_features(encoder, texts, preprocessing))


def _external_head(
    subject: Subject, models: ModelSource, preprocessing: TextPreprocessing
) -> Callable[[Tensor], Tensor]:
    head = subject.task.spec.head
    if isinstance(head, LabelPromptsHead):
        vectors = _prompt_vectors(subject.task, head, models.encoder(subject.base_model), preprocessing)
        return lambda features: feature_math.cosine_logits(_fitting(features, vectors), vectors, head.scale)
    weight, bias = _linear_head(subject.task, models.device)

    def linear(features: Tensor) -> Tensor:
        scaled = feature_math.unit_norm(features) if preprocessing.normalize else features
        return feature_math.linear_logits(_fitting(scaled, weight), weight, bias)

    return linear


def _prompt_vectors(
    task: LocalTask, head: LabelPromptsHead, encoder: Encoder, preprocessing: TextPreprocessing
) -> Tensor:
    if len(head.prompts) != len(task.spec.classes):
        raise HeadMismatch(
            f"Task {task.spec.name!r} has {len(task.spec.classes)} classes and {len(head.prompts)} label prompts; "
            "give one prompt per class, in the classes' order."
        )
    prompts = [prompt[: preprocessing.max_characters] for prompt in head.prompts]
    with torch.no_grad():
        return _features(encoder, prompts, preprocessing)  # [n_classes, width]


def _linear_head(task: LocalTask, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Read `weight` [n_classes, width] and the optional `bias` [n_classes] of a linear head, as float32."""
    if task.head_weights is None:
        raise HeadMismatch(f"Task {task.spec.name!r} has a linear head without its weights file; make it again.")
    content = task.head_weights.read_bytes()
    registered = task.spec.head_weights
    if registered is not None and registered.sha256 != hashlib.sha256(content).hexdigest():
        raise InputChanged(
            f"The weights file of task {task.spec.name!r}'s linear head changed since the task was made (expected "
            f"sha256 {registered.sha256[:12]}…). Restore it, or make a task with the new file under another name."
        )
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise HeadMismatch(
            f"The weights of task {task.spec.name!r}'s linear head cannot be read ({type(error).__name__}); expected a "
            "safetensors file with 'weight' [n_classes, width] and optionally 'bias' [n_classes]."
        ) from error
    found = {name: list(tensor.shape) for name, tensor in sorted(tensors.items())}
    n_classes = len(task.spec.classes)
    weight, bias = tensors.pop("weight", None), tensors.pop("bias", None)
    is_fitting = weight is not None and weight.ndim == 2 and weight.shape[0] == n_classes and not tensors
    if weight is None or not is_fitting or (bias is not None and list(bias.shape) != [n_classes]):
        raise HeadMismatch(
            f"The linear head of task {task.spec.name!r} holds {found}; expected 'weight' [{n_classes}, width] and "
            f"optionally 'bias' [{n_classes}] for its {n_classes} classes."
        )
    return weight.float().to(device), None if bias is None else bias.float().to(device)


def _own_head(task: LocalTask, classifier: Classifier, preprocessing: TextPreprocessing) -> Logits:
    order = torch.tensor(_class_order(task, classifier.labels), device=classifier.module.device)

    def logits(texts: Sequence[str]) -> Tensor:
        found: Tensor = classifier.module(**_tokens(classifier, texts, preprocessing)).logits
        return found[:, order]

    return logits


def _class_order(task: LocalTask, labels: tuple[str, ...]) -> list[int]:
    """Return, per class of the task, the index of its logit: by name where the names agree, else by position."""
    classes = task.spec.classes
    if len(labels) != len(classes):
        raise HeadMismatch(
            f"The checkpoint's own head has {len(labels)} classes, task {task.spec.name!r} has {len(classes)}. "
            "Evaluate a checkpoint with a head for these classes, or make a task with another head."
        )
    if sorted(labels) == sorted(classes):
        return [labels.index(name) for name in classes]
    return list(range(len(classes)))


def _features(encoder: Encoder, texts: Sequence[str], preprocessing: TextPreprocessing) -> Tensor:
    """Return the pooled last hidden states, [n, width] float32."""
    tokens = _tokens(encoder, texts, preprocessing)
    hidden: Tensor = encoder.module(**tokens).last_hidden_state  # [n, t, width]
    if preprocessing.pooling == "cls":
        return feature_math.first_pool(hidden)
    return feature_math.mean_pool(hidden, tokens["attention_mask"])


def _tokens(encoder: Encoder, texts: Sequence[str], preprocessing: TextPreprocessing) -> dict[str, Tensor]:
    if preprocessing.max_tokens > encoder.max_tokens:
        raise InvalidParameters(
            f"preprocessing.max_tokens is {preprocessing.max_tokens}, the model has positions for "
            f"{encoder.max_tokens} tokens. Make a task with fewer."
        )
    return encoder.tokenize(texts, max_tokens=preprocessing.max_tokens)


def _fitting(features: Tensor, class_vectors: Tensor) -> Tensor:
    if features.shape[-1] != class_vectors.shape[-1]:
        raise HeadMismatch(
            f"The checkpoint's features have width {features.shape[-1]}, the head's class vectors "
            f"{class_vectors.shape[-1]}. Use a head made for this encoder."
        )
    return features
