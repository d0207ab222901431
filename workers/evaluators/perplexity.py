"""Perplexity: how well does a causal language model predict texts, token by token?

Each text is one example and is read in windows that overlap, so that every token is scored once, with as many tokens
before it as fit. Per token: perplexity and its logarithm; per byte: what models with different tokenizers can share.

Source: Jelinek et al. 1977, "Perplexity, a measure of the difficulty of speech recognition tasks"; Baevski and Auli
2019, arXiv:1809.10853, section 4.4 (overlapping windows).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from app.domain.errors import InvalidDataset, InvalidParameters, NotFinite
from app.domain.parameters import Parameters
from app.domain.tasks import LocalTask, Measurement, MeasurementDetails
from workers import predictions
from workers.checkpoints.language import CausalModel, load_causal
from workers.datasets.text import batches_by_length, read_texts
from workers.model_contract import ModelSource, Probe, Subject, Trainable, evaluator
from workers.scoring.intervals import Floats, Integers, resample_examples

_LARGEST = 700.0  # exp() of more leaves the range of numbers


class PerplexityPreprocessing(Parameters):
    """How texts are cut into windows."""

    max_tokens: int = Field(default=512, ge=2, le=131_072, description="Tokens of a window.")
    stride: int = Field(default=256, ge=1, le=131_072, description="Tokens by which a window follows the last one.")
    batch_size: int = Field(default=4, ge=1, le=4096, description="Windows run at once when measuring.")
    add_bos: bool = Field(
        default=True, description="Begin a text with the tokenizer's first token, where it has one, and score them all."
    )


@dataclass(frozen=True)
class _Window:
    """Tokens of one text; the last n_scored of them are scored."""

    text: int  # index
    tokens: Sequence[int]
    n_scored: int

    def __len__(self) -> int:
        return len(self.tokens)


def make_trainable(subject: Subject, models: ModelSource) -> Trainable:
    """Open a causal language model for training on the texts of the task's train split.

    An example is a window; windows do not overlap here. The loss is the mean over the tokens of a batch.
    Raises: InvalidDataset, InvalidParameters, ModelNotRunnable.
    """
    model, windows = _open_apart(subject, "train", models)

    def loss(batch: Sequence[int]) -> Tensor:
        losses = model.token_losses([windows[index].tokens for index in batch])
        return losses.sum() / sum(len(windows[index]) - 1 for index in batch)

    return Trainable(module=model.module, embeddings=model.embedding_parameters, n_examples=len(windows), loss=loss)


def open_probe(subject: Subject, split: str, models: ModelSource) -> Probe:
    """Open a causal language model for learning on the texts of one split, in the windows of a training.

    Raises: InvalidDataset, InputChanged, InvalidParameters, ModelNotRunnable.
    """
    model, windows = _open_apart(subject, split, models)
    size = PerplexityPreprocessing.model_validate(subject.task.spec.preprocessing).batch_size
    return predictions.make_probe(
        subject.task,
        model.module,
        lambda batch: model.predict([windows[index].tokens for index in batch]),
        counts=[len(window) - 1 for window in windows],
        order=[index for batch in batches_by_length([len(one) for one in windows], size) for index in batch],
    )


@evaluator(
    name="perplexity",
    title="Perplexity",
    summary="How well a causal language model predicts texts: perplexity, nats per token, or bits per byte.",
    source="Jelinek et al. 1977; Baevski and Auli 2019, arXiv:1809.10853, section 4.4",
    heads=("own",),
    metrics=("perplexity", "nll_per_token", "bits_per_byte"),
    parameters=PerplexityPreprocessing,
    classes="none",
    make_trainable=make_trainable,
    trainable_heads=("own",),
    open_probe=open_probe,
)
def measure(
    subject: Subject, split: str, models: ModelSource, on_examples: Callable[[int, int], None]
) -> tuple[Measurement, ...]:
    """Return the task's metric over all tokens of the split; lower is better.

    Raises: InvalidDataset, InputChanged, ModelNotRunnable, InvalidParameters; NotFinite when it gives no numbers.
    """
    task = subject.task
    preprocessing = PerplexityPreprocessing.model_validate(task.spec.preprocessing)
    model = _open(subject, models, preprocessing)
    texts = read_texts(task, split)
    windows = _cut(model, texts, preprocessing)
    losses = np.zeros(len(texts))  # per text, in nats
    n_done = 0
    with torch.inference_mode():
        for batch in batches_by_length([len(window) for window in windows], preprocessing.batch_size):
            found = model.token_losses([windows[index].tokens for index in batch])  # [n, t - 1]
            for index, row in zip(batch, found.double(), strict=True):
                window = windows[index]
                losses[window.text] += float(row[len(window) - 1 - window.n_scored : len(window) - 1].sum())
            n_done += len(batch)
            on_examples(n_done, len(windows))
    n_tokens = np.bincount(
        [window.text for window in windows], weights=[window.n_scored for window in windows], minlength=len(texts)
    )
    n_bytes = np.array([len(text.encode()) for text in texts])
    return (_score(task, split, losses, n_tokens.astype(np.int64), n_bytes),)


def _score(task: LocalTask, split: str, losses: Floats, n_tokens: Integers, n_bytes: Integers) -> Measurement:
    """Return the task's metric. losses, n_tokens, n_bytes: per text, [n]."""
    if not n_tokens.sum():
        raise InvalidDataset(f"Task {task.spec.name!r}, {split} split: no text has two tokens, nothing to score.")
    if not math.isfinite(losses.sum()) or losses.sum() / n_tokens.sum() > _LARGEST:
        raise NotFinite(
            f"The checkpoint's loss on task {task.spec.name!r} is {losses.sum() / n_tokens.sum()} per token, expected "
            "a number. Look for NaN in its weights, or merge with a smaller scaling_coefficient."
        )
    numbers: dict[str, Callable[[Integers], float]] = {
        "perplexity": lambda chosen: math.exp(min(losses[chosen].sum() / max(n_tokens[chosen].sum(), 1), _LARGEST)),
        "nll_per_token": lambda chosen: float(losses[chosen].sum() / max(n_tokens[chosen].sum(), 1)),
        "bits_per_byte": lambda chosen: float(losses[chosen].sum() / n_bytes[chosen].sum() / math.log(2)),
    }
    every = np.arange(len(losses))
    metric = task.spec.metric
    stderr, interval = resample_examples(len(losses), numbers[metric])
    return Measurement(
        task=task.id,
        name=metric,
        value=numbers[metric](every),
        unit={"nll_per_token": "nats", "bits_per_byte": "bits"}.get(metric, "perplexity"),
        higher_is_better=False,
        split=split,
        n=len(losses),
        stderr=stderr,
        details=MeasurementDetails(
            interval=interval,
            counts={"n_tokens": int(n_tokens.sum()), "n_bytes": int(n_bytes.sum())},
            other={name: number(every) for name, number in numbers.items() if name != metric},
        ),
    )


def _open(subject: Subject, models: ModelSource, preprocessing: PerplexityPreprocessing) -> CausalModel:
    model = models.open(subject.checkpoint, load_causal)
    if preprocessing.max_tokens > model.max_tokens:
        raise InvalidParameters(
            f"preprocessing.max_tokens is {preprocessing.max_tokens}, the model has positions for {model.max_tokens} "
            "tokens. Make a task with fewer."
        )
    if preprocessing.stride > preprocessing.max_tokens:
        raise InvalidParameters(
            f"preprocessing.stride is {preprocessing.stride}, more than max_tokens ({preprocessing.max_tokens}): "
            "tokens between two windows would not be scored. Make a task with a smaller stride."
        )
    return model


def _open_apart(subject: Subject, split: str, models: ModelSource) -> tuple[CausalModel, list[_Window]]:
    """Return the model, and the texts of a split in windows that do not overlap, so that each token counts once."""
    preprocessing = PerplexityPreprocessing.model_validate(subject.task.spec.preprocessing)
    model = _open(subject, models, preprocessing)
    apart = preprocessing.model_copy(update={"stride": preprocessing.max_tokens})
    windows = _cut(model, read_texts(subject.task, split), apart)
    if not windows:
        task = subject.task.spec.name
        raise InvalidDataset(f"Task {task!r}, {split} split: no text has two tokens, nothing to learn.")
    return model, windows


def _cut(model: CausalModel, texts: Sequence[str], preprocessing: PerplexityPreprocessing) -> list[_Window]:
    """Cut each text into windows; the first token of a text is not scored: nothing stands before it."""
    first = model.tokenizer.bos_token_id if preprocessing.add_bos else None
    windows: list[_Window] = []
    for index, text in enumerate(texts):
        plain: list[int] = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        tokens = plain if first is None else [first, *plain]
        scored = 1  # tokens up to here need no more score
        end = 0
        while scored < len(tokens):
            begin = max(0, min(scored - 1, end - preprocessing.max_tokens + preprocessing.stride))
            end = min(begin + preprocessing.max_tokens, len(tokens))
            windows.append(_Window(index, tokens[begin:end], end - scored))
            scored = end
    return windows
