"""Parquet files of tasks: the same rows as JSON lines, and the faults that are refused with their row."""

import datetime
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.domain.errors import InputChanged, InvalidDataset
from app.domain.tasks import Columns, LocalTask, Measurement
from tests.workers import tiny_bert, tiny_vision
from workers.checkpoints.model import Models
from workers.datasets import parquet, rows, text
from workers.datasets.images import read_labeled_images
from workers.evaluators import text_classification
from workers.model_contract import Subject

ROWS = tiny_bert.make_rows()
PIXELS, LABELS = tiny_vision.make_images(4)


def write(file: Path, table: list[dict[str, Any]], **options: Any) -> Path:
    pa: Any = pytest.importorskip("pyarrow", reason="the optional extra `parquet` is not installed")
    pq: Any = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist(table), file, **options)
    return file


def make_task(file: Path, **changes: Any) -> LocalTask:
    return tiny_bert.as_task({"train": file, "test": file}, **changes)


def fault(task: LocalTask) -> str:
    with pytest.raises(InvalidDataset) as caught:
        text.read_labeled_texts(task, "test", max_characters=20)
    return caught.value.detail


def test_the_rows_are_those_of_json_lines(tmp_path: Path) -> None:
    table = [{**row, "id": index, "tags": ["a", None], "at": None} for index, row in enumerate(ROWS)]
    task = make_task(write(tmp_path / "test.parquet", table, row_group_size=5))
    lines = make_task(tiny_bert.write_rows(tmp_path / "test.jsonl", table))

    assert [row.values for row in rows.read_rows(task, "test")] == [row.values for row in rows.read_rows(lines, "test")]
    assert [row.number for row in rows.read_rows(task, "test")] == list(range(1, len(ROWS) + 1))


def test_more_rows_than_are_read_at_once_keep_their_order(tmp_path: Path) -> None:
    table = [{"text": f"text {index}", "label": index % 2} for index in range(1000)]

    found = text.read_labeled_texts(make_task(write(tmp_path / "t.parquet", table)), "test", max_characters=20)

    assert found.texts == tuple(str(row["text"]) for row in table)
    assert found.labels == (0, 1) * 500


def test_an_evaluation_gives_the_same_numbers(tmp_path: Path) -> None:
    base = tiny_bert.local(tiny_bert.make_encoder(tmp_path / "base"))

    def measure(task: LocalTask) -> Measurement:
        subject = Subject(task, base, base)
        (found,) = text_classification.measure.measure(subject, "test", Models(), tiny_bert.ignore_examples)
        return found

    short = {"preprocessing": {"max_tokens": 16}}
    of_table = make_task(write(tmp_path / "t.parquet", ROWS), **short)
    assert measure(of_table) == measure(make_task(tiny_bert.write_rows(tmp_path / "t.jsonl", ROWS), **short))


@pytest.mark.parametrize("is_struct", [False, True])
def test_images_are_bytes_alone_or_in_a_struct(tmp_path: Path, *, is_struct: bool) -> None:
    encoded = [tiny_vision.encode(one) for one in PIXELS]
    cells = [{"bytes": one, "path": None} if is_struct else one for one in encoded]
    table = [{"image": cell, "label": int(label)} for cell, label in zip(cells, LABELS, strict=True)]
    task = make_image_task(write(tmp_path / "t.parquet", table))

    found = read_labeled_images(task, "test")

    assert found.labels == tuple(LABELS.tolist())
    for index, pixels in enumerate(PIXELS):
        np.testing.assert_array_equal(np.asarray(found.open(index)), pixels)


def make_image_task(file: Path) -> LocalTask:
    return make_task(file, kind="image-classification", columns=Columns(input="image"), classes=tiny_vision.CLASSES)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("text", "row 1: column 'image' holds a string, expected an encoded image: bytes"),
        ({"path": "a.png"}, "row 1: column 'image' holds an object, expected an encoded image"),
    ],
)
def test_what_is_no_image_is_refused_with_its_row(tmp_path: Path, cell: object, words: str) -> None:
    task = make_image_task(write(tmp_path / "t.parquet", [{"image": cell, "label": 0}]))

    with pytest.raises(InvalidDataset, match=words):
        read_labeled_images(task, "test")


def test_an_image_that_cannot_be_decoded_is_refused_with_its_row(tmp_path: Path) -> None:
    table = [{"image": tiny_vision.encode(PIXELS[0]), "label": 0}, {"image": b"none", "label": 1}]
    found = read_labeled_images(make_image_task(write(tmp_path / "t.parquet", table)), "test")

    with pytest.raises(InvalidDataset, match="row 2: the image cannot be decoded"):
        found.open(1)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "red", "label": 5}, "row 2: label 5 is outside 0 to 1"),
        ({"text": "red", "label": None}, "row 2: the label is null, expected a class index"),
        ({"text": None, "label": 0}, "row 2: column 'text' holds null, expected a string"),
        ({"text": "x" * (2**20 + 1), "label": 0}, "row 2: column 'text' holds 1,048,577 bytes, at most 1,048,576"),
    ],
)
def test_a_faulty_row_is_refused_with_its_number(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    detail = fault(make_task(write(tmp_path / "t.parquet", [ROWS[0], row])))

    assert detail.startswith("Task 'kind', test split (t.parquet), ")
    assert words in detail


def test_a_column_of_another_type_is_named(tmp_path: Path) -> None:
    table = [{"text": datetime.date(2026, 1, 1), "label": 0}]

    assert "row 1: column 'text' holds date, expected a string" in fault(
        make_task(write(tmp_path / "t.parquet", table))
    )


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    task = make_task(write(tmp_path / "t.parquet", [{"txt": "red", "label": 0}]))

    assert "there is no column 'text'; found columns 'txt, label'. Did you mean 'txt'?" in fault(task)


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    pa: Any = pytest.importorskip("pyarrow", reason="the optional extra `parquet` is not installed")
    pq: Any = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), file)

    assert "found no example, expected one a row" in fault(make_task(file))


@pytest.mark.parametrize("keep", [0, 40, -3])
def test_what_is_no_parquet_file_is_refused(tmp_path: Path, keep: int) -> None:
    file = write(tmp_path / "t.parquet", ROWS)
    file.write_bytes(file.read_bytes()[:keep])

    assert "not a Parquet file that can be read (" in fault(make_task(file))


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "t.parquet", ROWS)
    task = make_task(file)
    write(file, ROWS[:3])

    with pytest.raises(InputChanged, match="the file changed since the task was made"):
        text.read_labeled_texts(task, "test", max_characters=20)


def test_more_examples_than_are_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(write(tmp_path / "t.parquet", ROWS))
    monkeypatch.setattr(parquet, "MAX_EXAMPLES", 3)

    assert "row 4: more than 3 examples; split the file" in fault(task)


def test_without_the_extra_a_job_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "t.parquet"
    file.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)  # as if it were not installed

    detail = fault(make_task(file))

    assert "reading Parquet needs pyarrow, which is not installed on this worker" in detail
    assert "amalgam[parquet]" in detail
