"""What turns features into one logit per class: label prompts, prototypes, a linear head, the checkpoint's own head.

Shared by the evaluators of texts and of images, which say how features are made. A head is made with a base model or
from a file and stays as it is while models are trained, merged and measured under it.

Source: Radford et al. 2021, arXiv:2103.00020, section 3.1 (prompts); Snell et al. 2017, arXiv:1703.05175 (prototypes).
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from app.domain.errors import HeadMismatch, InputChanged
from app.domain.tasks import LabelPromptsHead, LocalTask, PrototypesHead
from workers.numerics import features as feature_math

OfExamples = Callable[[Sequence[int]], Tensor]  # indices of examples -> [n, …], with its graph
Head = Callable[[Tensor], Tensor]  # features [n, width] -> logits [n, n_classes]


def embed_prompts(task: LocalTask, head: LabelPromptsHead, embed: Callable[[Sequence[str]], Tensor]) -> Head:
    """Return scale x cosine with the prompts' embeddings; `embed` makes [n_classes, width] of one text per class.

    Raises: HeadMismatch for another number of prompts than classes.
    """
    if len(head.prompts) != len(task.spec.classes):
        raise HeadMismatch(
            f"Task {task.spec.name!r} has {len(task.spec.classes)} classes and {len(head.prompts)} label prompts; "
            "give one prompt per class, in the classes' order."
        )
    with torch.no_grad():
        return cosine(embed(head.prompts), head.scale)


def average_shots(task: LocalTask, head: PrototypesHead, labels: Sequence[int], features_of: OfExamples) -> Head:
    """Return scale x cosine with each class's mean feature over its first `shots` training examples.

    labels: of all training examples; features_of: indices of some -> [n, width], each brought to length 1 first.
    Raises: HeadMismatch for a class with fewer examples.
    """
    vectors: list[Tensor] = []
    for index, name in enumerate(task.spec.classes):
        chosen = [example for example, label in enumerate(labels) if label == index][: head.shots]
        if len(chosen) < head.shots:
            raise HeadMismatch(
                f"Class {name!r} of task {task.spec.name!r} has {len(chosen)} training examples, its prototype takes "
                f"{head.shots}. Make a task with fewer shots, or with more examples."
            )
        with torch.no_grad():
            vectors.append(feature_math.unit_norm(features_of(chosen)).mean(dim=0))
    return cosine(torch.stack(vectors), head.scale)


def cosine(vectors: Tensor, scale: float) -> Head:
    """Return the head whose logits are scale x cosine. vectors: [n_classes, width]."""
    return lambda features: feature_math.cosine_logits(_fitting(features, vectors), vectors, scale)


def read_linear(task: LocalTask, device: torch.device, *, normalize: bool) -> Head:
    """Return a linear head from its file: `weight` [n_classes, width] and the optional `bias` [n_classes], as float32.

    Raises: HeadMismatch for a file of another form; InputChanged for one that is not the registered one.
    """
    weight, bias = _read_weights(task)
    weight = weight.float().to(device)
    bias = None if bias is None else bias.float().to(device)

    def linear(features: Tensor) -> Tensor:
        scaled = feature_math.unit_norm(features) if normalize else features
        return feature_math.linear_logits(_fitting(scaled, weight), weight, bias)

    return linear


def put_on(features: OfExamples, head: Head) -> OfExamples:
    """Return what gives logits of examples: a head on their features."""
    return lambda batch: head(features(batch))


def order_classes(task: LocalTask, labels: tuple[str, ...]) -> list[int]:
    """Return, per class of the task, the index of its logit: by name where the names agree, else by position.

    labels: of the checkpoint's own head. Raises: HeadMismatch for another number of classes.
    """
    classes = task.spec.classes
    if len(labels) != len(classes):
        raise HeadMismatch(
            f"The checkpoint's own head has {len(labels)} classes, task {task.spec.name!r} has {len(classes)}. "
            "Evaluate a checkpoint with a head for these classes, or make a task with another head."
        )
    if sorted(labels) == sorted(classes):
        return [labels.index(name) for name in classes]
    return list(range(len(classes)))


def _fitting(features: Tensor, class_vectors: Tensor) -> Tensor:
    if features.shape[-1] != class_vectors.shape[-1]:
        raise HeadMismatch(
            f"The checkpoint's features have width {features.shape[-1]}, the head's class vectors "
            f"{class_vectors.shape[-1]}. Use a head made for this encoder."
        )
    return features


def _read_weights(task: LocalTask) -> tuple[Tensor, Tensor | None]:
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
    return weight, bias
