"""Text to text: does a model answer a text with the text that is wanted?

Answers are generated greedily and compared with the row's answer, or with the name of its class. Source: Raffel et al.
2020, arXiv:1910.10683, section 2.3: every task as text to text, an answer that is no label is wrong.
"""

from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor

from app.domain.errors import HeadMismatch, InvalidParameters
from app.domain.parameters import Parameters
from app.domain.tasks import LocalTask, Measurement
from workers import predictions
from workers.checkpoints.language import IGNORED, TextToText, load_text_to_text
from workers.datasets.text import AnsweredTexts, batches_by_length, read_answered_texts
from workers.model_contract import ModelSource, Probe, Subject, Trainable, evaluator
from workers.scoring import answers


class Text2TextPreprocessing(Parameters):
    """How texts are fed, and how long an answer may be."""

    max_characters: int = Field(default=4000, ge=1, le=1_000_000, description="Texts are cut to this many characters.")
    max_tokens: int = Field(default=512, ge=2, le=131_072, description="Most tokens of a text, special ones included.")
    max_new_tokens: int = Field(default=32, ge=1, le=4096, description="Most tokens of an answer.")
    batch_size: int = Field(default=16, ge=1, le=4096, description="Texts run at once when measuring.")


def make_trainable(subject: Subject, models: ModelSource) -> Trainable:
    """Open a text-to-text model for training on the answers of the task's train split.

    The loss is the mean cross-entropy over the answers' tokens. Raises: InvalidDataset, ModelNotRunnable.
    """
    preprocessing, examples = _read(subject.task, "train")
    model = _open(subject, models, preprocessing)

    def loss(batch: Sequence[int]) -> Tensor:
        tokens = model.tokenize([examples.texts[index] for index in batch], max_tokens=preprocessing.max_tokens)
        wanted = [examples.answers[index] for index in batch]
        targets = model.targets(wanted, max_tokens=preprocessing.max_new_tokens)
        found: Tensor = model.module(**tokens, labels=targets).loss
        return found

    return Trainable(module=model.module, embeddings=model.embedding_parameters, n_examples=len(examples), loss=loss)


def open_probe(subject: Subject, split: str, models: ModelSource) -> Probe:
    """Open a text-to-text model for learning on the answers of one split.

    Raises: InvalidDataset, InputChanged, InvalidParameters, ModelNotRunnable.
    """
    preprocessing, examples = _read(subject.task, split)
    model = _open(subject, models, preprocessing)

    def predict(batch: Sequence[int]) -> tuple[Tensor, Tensor]:
        return model.predict(
            [examples.texts[index] for index in batch],
            [examples.answers[index] for index in batch],
            max_tokens=preprocessing.max_tokens,
            max_new_tokens=preprocessing.max_new_tokens,
        )

    answers = model.targets(examples.answers, max_tokens=preprocessing.max_new_tokens)
    counts = (answers != IGNORED).sum(dim=1).tolist()
    lengths = model.count_tokens(examples.texts, max_tokens=preprocessing.max_tokens)
    order = [index for batch in batches_by_length(lengths, preprocessing.batch_size) for index in batch]
    return predictions.make_probe(subject.task, model.module, predict, counts, order)


@evaluator(
    name="text2text",
    title="Text to text",
    summary="Generated answers of a text-to-text model: exact match, overlap of words, scores of classes or of ranks.",
    source="Raffel et al. 2020, arXiv:1910.10683, section 2.3",
    heads=("own",),
    metrics=("exact_match", "token_f1", "f1", "matthews", "spearman"),
    parameters=Text2TextPreprocessing,
    classes="optional",
    make_trainable=make_trainable,
    trainable_heads=("own",),
    open_probe=open_probe,
    version=2,  # since 2: exact_match of classes has counts per class
)
def measure(
    subject: Subject, split: str, models: ModelSource, on_examples: Callable[[int, int], None]
) -> tuple[Measurement, ...]:
    """Return the task's metric over all answers of the split.

    Raises: InvalidDataset, InputChanged, ModelNotRunnable, InvalidParameters; HeadMismatch for a metric of classes on a
        task without; NotFinite when the model gives no numbers.
    """
    task = subject.task
    if task.spec.metric in answers.OF_CLASSES and not task.spec.classes:
        raise HeadMismatch(
            f"Task {task.spec.name!r} is scored with {task.spec.metric}, which needs classes. Make a task that names "
            "them, or one with the metric exact_match or token_f1."
        )
    preprocessing, examples = _read(task, split)
    model = _open(subject, models, preprocessing)
    given = [""] * len(examples)
    n_done = 0
    with torch.inference_mode():
        lengths = model.count_tokens(examples.texts, max_tokens=preprocessing.max_tokens)
        for batch in batches_by_length(lengths, preprocessing.batch_size):
            found = model.answer(
                [examples.texts[index] for index in batch],
                max_tokens=preprocessing.max_tokens,
                max_new_tokens=preprocessing.max_new_tokens,
            )
            for index, answer in zip(batch, found, strict=True):
                given[index] = answer
            n_done += len(batch)
            on_examples(n_done, len(examples))
    return (answers.score(task, split, given, examples.answers),)


def _read(task: LocalTask, split: str) -> tuple[Text2TextPreprocessing, AnsweredTexts]:
    preprocessing = Text2TextPreprocessing.model_validate(task.spec.preprocessing)
    return preprocessing, read_answered_texts(task, split, max_characters=preprocessing.max_characters)


def _open(subject: Subject, models: ModelSource, preprocessing: Text2TextPreprocessing) -> TextToText:
    model = models.open(subject.checkpoint, load_text_to_text)
    if preprocessing.max_tokens > model.max_tokens:
        raise InvalidParameters(
            f"preprocessing.max_tokens is {preprocessing.max_tokens}, the model has positions for {model.max_tokens} "
            "tokens. Make a task with fewer."
        )
    return model
