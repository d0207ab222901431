"""Labeled texts from a task's JSON lines files: every fault is refused with its line, nothing is skipped.

One JSON object per line; blank lines carry nothing and are passed over. Labels are class indices or class names.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from app.domain.errors import InputChanged, InvalidDataset, near_match
from app.domain.tasks import LocalTask, TaskSpec

MAX_LINE_BYTES = 1024 * 1024
MAX_EXAMPLES = 5_000_000
_SHOWN = 60  # characters of a faulty value that a message quotes


@dataclass(frozen=True)
class LabeledTexts:
    """The examples of one split, in the file's order."""

    texts: tuple[str, ...]  # cut to max_characters
    labels: tuple[int, ...]  # indices into the task's classes

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.texts)


def read_labeled_texts(task: LocalTask, split: str, *, max_characters: int) -> LabeledTexts:
    """Read one split of a text classification task.

    Raises: InvalidDataset with split, file and line: a split that the task has not, bytes that are not UTF-8, broken
        JSON, a missing column, a text that is no string or holds a NUL, a label outside the classes, no example at all;
        InputChanged when the file is no longer the one that was registered.
    """
    path, file = _file(task, split)
    reader = _Reader(task.spec, split, path.name if file is None else file)
    digest = hashlib.sha256()
    texts: list[str] = []
    labels: list[int] = []
    for number, line in _lines(path, digest, reader):
        text, label = reader.parse(number, line)
        texts.append(text[:max_characters])
        labels.append(label)
    _refuse_changed(task, split, digest.hexdigest(), reader)
    if not texts:
        raise InvalidDataset(f"{reader.where()}: found no example, expected one JSON object per line.")
    return LabeledTexts(tuple(texts), tuple(labels))


@dataclass(frozen=True)
class _Reader:
    """Parses lines of one split, and knows where it is for its messages."""

    spec: TaskSpec
    split: str
    file: str

    def where(self, line: int | None = None) -> str:
        place = f"Task {self.spec.name!r}, {self.split} split ({self.file})"
        return place if line is None else f"{place}, line {line}"

    def fail(self, line: int, problem: str) -> NoReturn:
        raise InvalidDataset(f"{self.where(line)}: {problem}")

    def parse(self, number: int, line: bytes) -> tuple[str, int]:
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            self.fail(number, f"byte {error.start + 1} is not UTF-8; save the file as UTF-8.")
        except RecursionError:
            self.fail(number, "the JSON is nested too deeply; expected one flat object.")
        except ValueError as error:
            self.fail(number, f"not JSON ({str(error)[:_SHOWN]}); expected one JSON object per line.")
        if not isinstance(row, dict):
            self.fail(number, f"found {_kind(row)}, expected a JSON object such as {self._example()}.")
        return self._text(number, row), self._label(number, row)

    def _text(self, number: int, row: dict[str, object]) -> str:
        text = self._cell(number, row, self.spec.columns.input)
        if not isinstance(text, str):
            self.fail(number, f"column {self.spec.columns.input!r} holds {_kind(text)}, expected a string.")
        if "\0" in text:
            self.fail(number, f"the text has a NUL at character {text.index(chr(0)) + 1}; remove it.")
        if any("\ud800" <= character <= "\udfff" for character in text):
            self.fail(number, "the text has half of a surrogate pair (\\ud800 to \\udfff), which is no character.")
        return text

    def _label(self, number: int, row: dict[str, object]) -> int:
        label = self._cell(number, row, self.spec.columns.label)
        classes = self.spec.classes
        if isinstance(label, int) and not isinstance(label, bool):
            if not 0 <= label < len(classes):
                self.fail(number, f"label {_quote(label)} is outside 0 to {len(classes) - 1}, the task's classes.")
            return label
        if not isinstance(label, str):
            self.fail(number, f"the label is {_kind(label)}, expected a class index or a class name.")
        if label not in classes:
            match = near_match(label, classes)
            hint = f" Did you mean {match!r}?" if match else ""
            self.fail(number, f"label {_quote(label)} is none of the task's {len(classes)} classes.{hint}")
        return classes.index(label)

    def _cell(self, number: int, row: dict[str, object], column: str) -> object:
        if column not in row:
            match = near_match(column, row)
            hint = f" Did you mean {match!r}?" if match else ""
            found = _quote(", ".join(row) or "none")
            self.fail(number, f"there is no column {column!r}; found columns {found}.{hint}")
        return row[column]

    def _example(self) -> str:
        columns = self.spec.columns
        return json.dumps({columns.input: "…", columns.label: self.spec.classes[0]}, ensure_ascii=False)


def _lines(path: Path, digest: "hashlib._Hash", reader: _Reader) -> Iterator[tuple[int, bytes]]:
    n_examples = 0
    with path.open("rb") as stream:
        for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES + 1), b""), start=1):
            digest.update(line)
            if len(line) > MAX_LINE_BYTES:
                reader.fail(number, f"longer than {MAX_LINE_BYTES} bytes; expected one example per line.")
            content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line  # a byte order mark says nothing
            if not content.strip():
                continue
            n_examples += 1
            if n_examples > MAX_EXAMPLES:
                reader.fail(number, f"more than {MAX_EXAMPLES} examples; split the file.")
            yield number, content


def _file(task: LocalTask, split: str) -> tuple[Path, str | None]:
    if split not in task.files:
        known = ", ".join(sorted(task.files)) or "none"
        raise InvalidDataset(
            f"Task {task.spec.name!r} has no {split} split; it has: {known}. Make a task that names a file for it."
        )
    registered = task.spec.dataset.get(split)
    return task.files[split], None if registered is None else registered.uri.rsplit("/", 1)[-1]


def _refuse_changed(task: LocalTask, split: str, found: str, reader: _Reader) -> None:
    registered = task.spec.dataset.get(split)
    if registered is not None and registered.sha256 != found:
        raise InputChanged(
            f"{reader.where()}: the file changed since the task was made (sha256 {found[:12]}…, expected "
            f"{registered.sha256[:12]}…). Restore it, or make a task of the new content under another name."
        )


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names[type(value)]


def _quote(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
