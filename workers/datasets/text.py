"""Texts from a task's JSON lines or Parquet files: with a label, with a text to answer, or alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.domain.tasks import LocalTask
from workers.datasets.lines import Row, kind_of
from workers.datasets.rows import read_rows


@dataclass(frozen=True)
class LabeledTexts:
    """The examples of one split, in the file's order."""

    texts: tuple[str, ...]  # cut to max_characters
    labels: tuple[int, ...]  # indices into the task's classes

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.texts)


@dataclass(frozen=True)
class AnsweredTexts:
    """Texts with the answer that is wanted, in the file's order."""

    texts: tuple[str, ...]  # cut to max_characters
    answers: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.texts)


def read_labeled_texts(task: LocalTask, split: str, *, max_characters: int) -> LabeledTexts:
    """Read one split of a text classification task.

    Raises: InvalidDataset with split, file and line (of Parquet: row): a split that the task has not, bytes that are
        not UTF-8, broken JSON, a missing column, a text that is no string or holds a NUL, a label outside the classes,
        no example at all; InputChanged when the file is no longer the one that was registered.
    """
    column = task.spec.columns.input
    rows = [(row.text(column)[:max_characters], row.label()) for row in read_rows(task, split)]
    return LabeledTexts(tuple(text for text, _ in rows), tuple(label for _, label in rows))


def read_answered_texts(task: LocalTask, split: str, *, max_characters: int) -> AnsweredTexts:
    """Read one split of a text-to-text task; of a task with classes, the answer is the name of the row's class.

    Raises: as `read_labeled_texts`; an answer without classes is a string or a number.
    """
    column = task.spec.columns.input
    rows = [(row.text(column)[:max_characters], _answer(row)) for row in read_rows(task, split)]
    return AnsweredTexts(tuple(text for text, _ in rows), tuple(answer for _, answer in rows))


def read_texts(task: LocalTask, split: str) -> tuple[str, ...]:
    """Read the texts of one split whole; other columns carry nothing.

    Raises: as `read_labeled_texts`; InvalidDataset for an empty text.
    """
    texts: list[str] = []
    for row in read_rows(task, split):
        text = row.text(task.spec.columns.input)
        if not text:
            row.fail("the text is empty; remove the line.")
        texts.append(text)
    return tuple(texts)


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield indices in batches, those of like length together, so that little is padded."""
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))  # the index makes it unique
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _answer(row: Row) -> str:
    spec = row.place.spec
    if spec.classes:
        return spec.classes[row.label()]
    answer = row.cell(spec.columns.label)
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return str(answer)
    if not isinstance(answer, str):
        row.fail(f"column {spec.columns.label!r} holds {kind_of(answer)}, expected the answer as a string or a number.")
    return answer
