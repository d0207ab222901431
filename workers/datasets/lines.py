"""A task's JSON lines files, row by row: every fault is refused with its line, nothing is skipped.

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
class Place:
    """One split of a task, as messages name it."""

    spec: TaskSpec
    split: str
    file: str

    def __str__(self) -> str:
        """Return the place in words."""
        return f"Task {self.spec.name!r}, {self.split} split ({self.file})"

    def fail(self, problem: str, at: str | None = None) -> NoReturn:
        """Refuse the file. `at`: where in it, such as a line. Raises: InvalidDataset."""
        raise InvalidDataset(f"{self}{'' if at is None else f', {at}'}: {problem}")

    def parse_label(self, label: object, at: str) -> int:
        """Return the index of a class that is given by index or by name. Raises: InvalidDataset."""
        classes = self.spec.classes
        if isinstance(label, int) and not isinstance(label, bool):
            if not 0 <= label < len(classes):
                self.fail(f"label {quote(label)} is outside 0 to {len(classes) - 1}, the task's classes.", at)
            return label
        if not isinstance(label, str):
            self.fail(f"the label is {kind_of(label)}, expected a class index or a class name.", at)
        if label not in classes:
            match = near_match(label, classes)
            hint = f" Did you mean {match!r}?" if match else ""
            self.fail(f"label {quote(label)} is none of the task's {len(classes)} classes.{hint}", at)
        return classes.index(label)


@dataclass(frozen=True)
class Row:
    """One line of a file, or one row of a table."""

    place: Place
    number: int  # from 1
    offset: int  # where the line begins, in bytes
    values: dict[str, object]
    unit: str = "line"

    def fail(self, problem: str) -> NoReturn:
        """Refuse the file because of this row. Raises: InvalidDataset."""
        self.place.fail(problem, f"{self.unit} {self.number}")

    def cell(self, column: str) -> object:
        """Return what a column holds. Raises: InvalidDataset where there is no such column."""
        if column not in self.values:
            match = near_match(column, self.values)
            hint = f" Did you mean {match!r}?" if match else ""
            found = quote(", ".join(self.values) or "none")
            self.fail(f"there is no column {column!r}; found columns {found}.{hint}")
        return self.values[column]

    def text(self, column: str) -> str:
        """Return the text in a column. Raises: InvalidDataset for what is no string, or cannot be encoded."""
        text = self.cell(column)
        if not isinstance(text, str):
            self.fail(f"column {column!r} holds {kind_of(text)}, expected a string.")
        if "\0" in text:
            self.fail(f"the text has a NUL at character {text.index(chr(0)) + 1}; remove it.")
        if any("\ud800" <= character <= "\udfff" for character in text):
            self.fail("the text has half of a surrogate pair (\\ud800 to \\udfff), which is no character.")
        return text

    def label(self) -> int:
        """Return the index of the row's class. Raises: InvalidDataset."""
        return self.place.parse_label(self.cell(self.place.spec.columns.label), f"{self.unit} {self.number}")


def place_of(task: LocalTask, split: str) -> tuple[Path, Place]:
    """Return the file of a split, and its place. Raises: InvalidDataset for a split that the task has not."""
    if split not in task.files:
        known = ", ".join(sorted(task.files)) or "none"
        raise InvalidDataset(
            f"Task {task.spec.name!r} has no {split} split; it has: {known}. Make a task that names a file for it."
        )
    registered = task.spec.dataset.get(split)
    path = task.files[split]
    return path, Place(task.spec, split, path.name if registered is None else registered.uri.rsplit("/", 1)[-1])


def read_rows(task: LocalTask, split: str, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Row]:
    """Yield the rows of one split; when all are read, the file is known to be the one that was registered.

    Raises: InvalidDataset with split, file and line: a split that the task has not, bytes that are not UTF-8, broken
        JSON, no row at all; InputChanged when the file is no longer the one that was registered.
    """
    path, place = place_of(task, split)
    digest = hashlib.sha256()
    n_rows = 0
    for number, offset, line in _lines(path, digest, place, max_line_bytes):
        n_rows += 1
        if n_rows > MAX_EXAMPLES:
            place.fail(f"more than {MAX_EXAMPLES} examples; split the file.", f"line {number}")
        yield Row(place, number, offset, parse(line, place, number))
    refuse_changed(task, place, digest.hexdigest())
    if n_rows == 0:
        place.fail("found no example, expected one JSON object per line.")


def parse(line: bytes, place: Place, number: int) -> dict[str, object]:
    """Return the object on a line. Raises: InvalidDataset."""
    at = f"line {number}"
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        place.fail(f"byte {error.start + 1} is not UTF-8; save the file as UTF-8.", at)
    except RecursionError:
        place.fail("the JSON is nested too deeply; expected one flat object.", at)
    except ValueError as error:
        place.fail(f"not JSON ({str(error)[:_SHOWN]}); expected one JSON object per line.", at)
    if not isinstance(row, dict):
        place.fail(f"found {kind_of(row)}, expected a JSON object such as {_example(place.spec)}.", at)
    return row


def refuse_changed(task: LocalTask, place: Place, found: str) -> None:
    """Check a file's sha256 against the one that the task was made with. Raises: InputChanged."""
    registered = task.spec.dataset.get(place.split)
    if registered is not None and registered.sha256 != found:
        raise InputChanged(
            f"{place}: the file changed since the task was made (sha256 {found[:12]}…, expected "
            f"{registered.sha256[:12]}…). Restore it, or make a task of the new content under another name."
        )


def kind_of(value: object) -> str:
    """Return what a value of JSON, or of a table, is, in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def quote(value: object) -> str:
    """Return a value as a message shows it."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _lines(path: Path, digest: "hashlib._Hash", place: Place, max_line_bytes: int) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    with path.open("rb") as stream:
        for number, line in enumerate(iter(lambda: stream.readline(max_line_bytes + 1), b""), start=1):
            digest.update(line)
            if len(line) > max_line_bytes:
                place.fail(f"longer than {max_line_bytes} bytes; expected one example per line.", f"line {number}")
            content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line  # a byte order mark says nothing
            begin = offset + len(line) - len(content)
            offset += len(line)
            if content.strip():
                yield number, begin, content


def _example(spec: TaskSpec) -> str:
    label = spec.classes[0] if spec.classes else "…"
    return json.dumps({spec.columns.input: "…", spec.columns.label: label}, ensure_ascii=False)
