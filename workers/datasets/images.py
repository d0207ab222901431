"""Labeled images from one file per split: JSON lines or Parquet with encoded images, a NumPy archive, a zipped folder.

Labels are read at once; an image is decoded when it is asked for, so a split may be larger than memory (but for NumPy
and Parquet). Every fault is
refused with its place, nothing is skipped.
"""

import base64
import binascii
import hashlib
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.domain.errors import InvalidDataset
from app.domain.tasks import LocalTask
from workers.datasets.lines import Place, kind_of, parse, place_of, refuse_changed
from workers.datasets.rows import read_rows

MAX_LINE_BYTES = 32 * 1024 * 1024  # of JSON lines: an image in base64
MAX_IMAGE_BYTES = 32 * 1024 * 1024  # encoded, in a zipped folder
MAX_ARCHIVE_BYTES = 8 * 1024**3  # of a NumPy archive unpacked, or of a table's images: they are held in memory
MAX_PIXELS = 64_000_000  # of one image


@dataclass(frozen=True)
class LabeledImages:
    """The examples of one split, in the file's order; `open` decodes one as RGB."""

    labels: tuple[int, ...]  # indices into the task's classes
    open: Callable[[int], Image.Image]

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)


def read_labeled_images(task: LocalTask, split: str) -> LabeledImages:
    """Read one split of an image classification task; the form of the file is told by its name.

    `.jsonl`: the input column holds an encoded image (PNG, JPEG, …) in base64, with or without `data:image/…;base64,`
    before it. `.npz`: `x` [n, height, width] or [n, height, width, 1 or 3] uint8, `y` [n] integers. `.zip`: a folder
    per class, named like it, with image files; sorted by name. `.parquet`: the input column holds the encoded image's
    bytes, alone or as `bytes` in a struct, as Hugging Face's datasets do.

    Raises: InvalidDataset with split, file and place; InputChanged when the file is not the one that was registered.
        An image that cannot be decoded is refused when it is opened.
    """
    path, place = place_of(task, split)
    suffix = PurePosixPath(place.file).suffix.lower()
    if suffix == ".parquet":
        return _read_table(task, split)
    if suffix not in (".npz", ".zip"):
        return _read_lines(task, split, path)
    with path.open("rb") as stream:
        refuse_changed(task, place, hashlib.file_digest(stream, "sha256").hexdigest())
    return _read_arrays(path, place) if suffix == ".npz" else _read_folder(path, place)


def _read_lines(task: LocalTask, split: str, path: Path) -> LabeledImages:
    column = task.spec.columns.input
    place = place_of(task, split)[1]
    labels: list[int] = []
    places: list[tuple[int, int]] = []  # line number, offset
    for row in read_rows(task, split, max_bytes=MAX_LINE_BYTES):
        if not isinstance(row.cell(column), str):
            row.fail(f"column {column!r} holds {kind_of(row.cell(column))}, expected an image in base64.")
        labels.append(row.label())
        places.append((row.number, row.offset))

    def open_(index: int) -> Image.Image:
        number, offset = places[index]
        with path.open("rb") as stream:
            stream.seek(offset)
            text = str(parse(stream.readline(), place, number)[column])
        encoded = text.split(",", 1)[1] if text.startswith("data:") and "," in text else text
        try:
            content = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            place.fail(f"column {column!r} is not base64 ({error}).", f"line {number}")
        return _decode(content, place, f"line {number}")

    return LabeledImages(tuple(labels), open_)


def _read_table(task: LocalTask, split: str) -> LabeledImages:
    column = task.spec.columns.input
    labels: list[int] = []
    contents: list[bytes] = []
    n_bytes = 0
    for row in read_rows(task, split, max_bytes=MAX_IMAGE_BYTES):
        cell = row.cell(column)
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            found = kind_of(cell)
            row.fail(f"column {column!r} holds {found}, expected an encoded image: bytes, or `bytes` in a struct.")
        labels.append(row.label())
        contents.append(content)
        n_bytes += len(content)
        if n_bytes > MAX_ARCHIVE_BYTES:
            row.fail(f"more than {MAX_ARCHIVE_BYTES:,} bytes of images; use a zipped folder.")
    place = place_of(task, split)[1]
    return LabeledImages(tuple(labels), lambda index: _decode(contents[index], place, f"row {index + 1}"))


def _read_arrays(path: Path, place: Place) -> LabeledImages:
    images, labels = _load_arrays(path, place)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        place.fail(
            f"x is {images.dtype} {list(images.shape)}, expected uint8 [n, height, width] or "
            "[n, height, width, 1 or 3] with values 0 to 255."
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1] or len(labels) == 0:
        place.fail(f"y is {labels.dtype} {list(labels.shape)}, expected integers [{len(images)}], at least one.")
    indices = tuple(place.parse_label(label, f"y[{index}]") for index, label in enumerate(labels.tolist()))

    def open_(index: int) -> Image.Image:
        pixels = images[index]
        return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels).convert("RGB")

    return LabeledImages(indices, open_)


def _load_arrays(path: Path, place: Place) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            n_bytes = sum(entry.file_size for entry in archive.infolist())
        if n_bytes > MAX_ARCHIVE_BYTES:
            place.fail(f"unpacks to {n_bytes:,} bytes, at most {MAX_ARCHIVE_BYTES:,} are read; use a zipped folder.")
        with np.load(path, allow_pickle=False) as arrays:
            found = sorted(arrays.files)
            if found != ["x", "y"]:
                place.fail(f"holds the arrays {', '.join(found) or 'none'}, expected x (images) and y (labels).")
            return arrays["x"], arrays["y"]
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise InvalidDataset(f"{place}: not a NumPy archive ({error}); expected np.savez(file, x=…, y=…).") from error


def _read_folder(path: Path, place: Place) -> LabeledImages:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = sorted((entry for entry in archive.infolist() if not entry.is_dir()), key=lambda it: it.filename)
    except zipfile.BadZipFile as error:
        raise InvalidDataset(f"{place}: not a zip file ({error}).") from error
    if not entries:
        place.fail("found no image, expected a folder per class with image files.")
    labels: list[int] = []
    for entry in entries:
        parts = PurePosixPath(entry.filename).parts
        if len(parts) < 2:
            place.fail("expected it in a folder that is named like its class.", entry.filename)
        if entry.file_size > MAX_IMAGE_BYTES:
            place.fail(f"has {entry.file_size:,} bytes, at most {MAX_IMAGE_BYTES:,} are read.", entry.filename)
        labels.append(place.parse_label(parts[0], entry.filename))

    def open_(index: int) -> Image.Image:
        with zipfile.ZipFile(path) as archive:
            return _decode(archive.read(entries[index]), place, entries[index].filename)

    return LabeledImages(tuple(labels), open_)


def _decode(content: bytes, place: Place, at: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content))
        if image.width * image.height > MAX_PIXELS:
            place.fail(f"the image has {image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are read.", at)
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        message = f"the image cannot be decoded ({str(error)[:100]}); expected PNG, JPEG or another common form."
        raise InvalidDataset(f"{place}, {at}: {message}") from error
