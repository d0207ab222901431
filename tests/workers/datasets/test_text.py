import json
from pathlib import Path
from typing import Any

import pytest

from app.domain.errors import InputChanged, InvalidDataset
from app.domain.tasks import Columns
from tests.workers import tiny_bert
from workers.datasets import lines, text


def read(folder: Path, content: bytes, **changes: Any) -> text.LabeledTexts:
    file = folder / "test.jsonl"
    file.write_bytes(content)
    return text.read_labeled_texts(tiny_bert.as_task({"test": file}, **changes), "test", max_characters=20)


def fault(folder: Path, content: bytes, **changes: Any) -> str:
    with pytest.raises(InvalidDataset) as caught:
        read(folder, content, **changes)
    assert str(folder) not in caught.value.detail  # the server's folders stay its own
    return caught.value.detail


def row(**cells: object) -> bytes:
    return json.dumps(cells).encode() + b"\n"


GOOD = row(text="red", label=0)


def test_labels_are_indices_or_class_names(tmp_path: Path) -> None:
    examples = read(tmp_path, GOOD + row(text="cat", label="animal"))
    assert examples == text.LabeledTexts(("red", "cat"), (0, 1))
    assert len(examples) == 2


def test_columns_may_have_other_names_and_other_columns_are_ignored(tmp_path: Path) -> None:
    content = row(body="red", kind=1, id=7)
    assert read(tmp_path, content, columns=Columns(input="body", label="kind")).labels == (1,)


def test_texts_are_cut_to_max_characters(tmp_path: Path) -> None:
    assert read(tmp_path, row(text="é" * 30, label=0)).texts == ("é" * 20,)


def test_blank_lines_and_a_byte_order_mark_carry_nothing(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + GOOD + b"\n  \r\n" + GOOD.strip()
    assert len(read(tmp_path, content)) == 2


def test_a_number_like_class_name_is_a_name_when_written_as_a_string(tmp_path: Path) -> None:
    content = row(text="red", label="0") + row(text="red", label=0)
    assert read(tmp_path, content, classes=("1", "0")).labels == (1, 0)


def test_message_names_task_split_file_and_line(tmp_path: Path) -> None:
    detail = fault(tmp_path, GOOD + b"\n" + b"{broken\n")
    assert detail.startswith("Task 'kind', test split (test.jsonl), line 3: not JSON (")
    assert detail.endswith("expected one JSON object per line.")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (row(texts="red", label=0), "there is no column 'text'; found columns 'texts, label'. Did you mean 'texts'?"),
        (row(text="red"), "there is no column 'label'; found columns 'text'."),
        (row(text=3, label=0), "column 'text' holds a number, expected a string."),
        (row(text=None, label=0), "column 'text' holds null, expected a string."),
        (row(text="a\0b", label=0), "the text has a NUL at character 2; remove it."),
        (row(text="\ud800", label=0), "the text has half of a surrogate pair"),
        (row(text="red", label=2), "label 2 is outside 0 to 1, the task's classes."),
        (row(text="red", label=-1), "label -1 is outside 0 to 1, the task's classes."),
        (row(text="red", label="colour"), "label 'colour' is none of the task's 2 classes. Did you mean 'color'?"),
        (row(text="red", label=True), "the label is a boolean, expected a class index or a class name."),
        (row(text="red", label=1.0), "the label is a number, expected a class index or a class name."),
        (row(text="red", label=[0]), "the label is a list, expected a class index or a class name."),
        (b"[1, 2]\n", 'found a list, expected a JSON object such as {"text": "…", "label": "color"}.'),
        (b"7\n", "found a number, expected a JSON object"),
        (b'{"text": "\xff", "label": 0}\n', "byte 11 is not UTF-8; save the file as UTF-8."),
        (b"\0\n", "not JSON ("),
        (b"9" * 5000 + b"\n", "not JSON ("),
        (b"[" * 100_000 + b"\n", "the JSON is nested too deeply; expected one flat object."),
        (b'"' + b"x" * lines.MAX_LINE_BYTES + b'"\n', "longer than 1048576 bytes; expected one example per line."),
    ],
)
def test_a_faulty_line_is_refused_with_its_fault(tmp_path: Path, line: bytes, expected: str) -> None:
    assert f"line 2: {expected}" in fault(tmp_path, GOOD + line)


def test_messages_stay_short_for_long_values(tmp_path: Path) -> None:
    assert len(fault(tmp_path, row(text="red", label="x" * 10_000))) < 300


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_split_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "found no example, expected one JSON object per line." in fault(tmp_path, content)


def test_too_many_examples_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_EXAMPLES", 2)
    assert "line 3: more than 2 examples; split the file." in fault(tmp_path, GOOD * 3)


def test_a_split_that_the_task_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match="Task 'kind' has no dev split; it has: test, train, validation"):
        text.read_labeled_texts(tiny_bert.make_task(tmp_path), "dev", max_characters=20)


def test_a_file_that_changed_since_the_task_was_made_is_refused(tmp_path: Path) -> None:
    task = tiny_bert.make_task(tmp_path)
    task.files["test"].write_bytes(GOOD)
    with pytest.raises(InputChanged, match=r"test split \(test.jsonl\): the file changed since the task was made"):
        text.read_labeled_texts(task, "test", max_characters=20)
