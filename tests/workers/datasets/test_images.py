"""Images from every form of file, and the faults that are refused with their place."""

import base64
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app.domain.errors import InputChanged, InvalidDataset
from app.domain.tasks import Columns, LocalTask
from tests.workers import tiny_bert, tiny_vision
from workers.datasets import images
from workers.datasets.images import read_labeled_images

PIXELS, LABELS = tiny_vision.make_images(4)


def make_task(file: Path) -> LocalTask:
    columns = Columns(input="image")
    return tiny_bert.as_task({"test": file}, kind="image-classification", columns=columns, classes=tiny_vision.CLASSES)


def write_lines(folder: Path, *rows: dict[str, object]) -> Path:
    return tiny_bert.write_rows(folder / "test.jsonl", rows)


def as_text(index: int) -> str:
    return base64.b64encode(tiny_vision.encode(PIXELS[index])).decode()


def write_rows(folder: Path) -> Path:
    rows = [{"image": as_text(index), "label": int(label)} for index, label in enumerate(LABELS)]
    rows[1]["image"] = f"data:image/png;base64,{as_text(1)}"
    file = write_lines(folder, *rows)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\n\n"))  # blank lines carry nothing
    return file


def write_arrays(folder: Path, **changes: object) -> Path:
    np.savez(folder / "test.npz", **{"x": PIXELS, "y": LABELS, **changes})  # type: ignore[arg-type]
    return folder / "test.npz"


def write_folder(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    content = {
        f"{tiny_vision.CLASSES[label]}/{index}.png": tiny_vision.encode(PIXELS[index])
        for index, label in enumerate(LABELS)
    }
    with zipfile.ZipFile(folder / "test.zip", "w") as archive:
        archive.mkdir("dark")
        for name, data in (files or content).items():
            archive.writestr(name, data)
    return folder / "test.zip"


@pytest.mark.parametrize(
    ("write", "order"), [(write_rows, [0, 1, 2, 3]), (write_arrays, [0, 1, 2, 3]), (write_folder, [1, 3, 0, 2])]
)
def test_every_form_gives_the_same_images(tmp_path: Path, write: Callable[[Path], Path], order: list[int]) -> None:
    found = read_labeled_images(make_task(write(tmp_path)), "test")
    assert found.labels == tuple(LABELS[order].tolist())
    for index, source in enumerate(order):
        np.testing.assert_array_equal(np.asarray(found.open(index)), PIXELS[source])


@pytest.mark.parametrize("pixels", [PIXELS[..., 0], PIXELS[..., :1]])
def test_gray_images_become_rgb(tmp_path: Path, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    found = read_labeled_images(make_task(write_arrays(tmp_path, x=pixels)), "test")
    np.testing.assert_array_equal(np.asarray(found.open(2)), np.repeat(PIXELS[2, ..., :1], 3, axis=-1))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": 3, "label": 0}, "line 1: column 'image' holds a number, expected an image in base64"),
        ({"image": "%%", "label": 0}, "line 1: column 'image' is not base64"),
        ({"image": "YWJj", "label": 0}, "line 1: the image cannot be decoded"),
        ({"image": as_text(0), "label": "drak"}, "line 1: .*Did you mean 'dark'"),
    ],
)
def test_a_faulty_line_is_refused(tmp_path: Path, row: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidDataset, match=message):
        read_labeled_images(make_task(write_lines(tmp_path, row)), "test").open(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": PIXELS.astype(np.float32)}, r"x is float32 \[4, 8, 8, 3\], expected uint8"),
        ({"x": PIXELS[..., :2]}, r"x is uint8 \[4, 8, 8, 2\]"),
        ({"y": LABELS[:3]}, r"y is int64 \[3\], expected integers \[4\]"),
        ({"y": LABELS + 1}, r"y\[1\]: label 2 is outside 0 to 1"),
        ({"z": LABELS}, "holds the arrays x, y, z, expected x"),
    ],
)
def test_faulty_arrays_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidDataset, match=message):
        read_labeled_images(make_task(write_arrays(tmp_path, **changes)), "test")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"dark.png": b""}, "dark.png: expected it in a folder"),
        ({"darker/0.png": b""}, "darker/0.png: label 'darker' is none of the task's 2 classes"),
        ({"dark/0.png": b"abc"}, "dark/0.png: the image cannot be decoded"),
    ],
)
def test_a_faulty_folder_is_refused(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(InvalidDataset, match=message):
        read_labeled_images(make_task(write_folder(tmp_path, files)), "test").open(0)


@pytest.mark.parametrize("name", ["test.npz", "test.zip"])
def test_what_is_no_archive_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no archive")
    with pytest.raises(InvalidDataset, match=r"not a (NumPy archive|zip file)"):
        read_labeled_images(make_task(tmp_path / name), "test")


def test_an_image_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 63)
    with pytest.raises(InvalidDataset, match="has 8 x 8 pixels, at most 63"):
        read_labeled_images(make_task(write_folder(tmp_path)), "test").open(0)


def test_a_changed_archive_is_refused(tmp_path: Path) -> None:
    task = make_task(write_arrays(tmp_path))
    write_arrays(tmp_path, y=1 - LABELS)
    with pytest.raises(InputChanged, match="the file changed since the task was made"):
        read_labeled_images(task, "test")


def test_an_object_array_is_not_unpickled(tmp_path: Path) -> None:
    file = write_arrays(tmp_path, y=np.array([json.dumps({})] * 4, dtype=object))
    with pytest.raises(InvalidDataset, match="not a NumPy archive"):
        read_labeled_images(make_task(file), "test")
