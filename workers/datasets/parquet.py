"""A task's Parquet files, row by row, by pyarrow: an optional extra (`pip install 'amalgam[parquet]'`).

Columns are named as in JSON lines, and hold the same values; images are bytes, as they were encoded.
"""

import hashlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from app.domain.errors import InvalidDataset
from app.domain.tasks import LocalTask
from workers.datasets.lines import MAX_EXAMPLES, Place, Row, place_of, refuse_changed

_ROWS_AT_ONCE = 256


def read_rows(task: LocalTask, split: str, *, max_cell_bytes: int) -> Iterator[Row]:
    """Yield the rows of one split, after the file is known to be the one that was registered.

    Raises: InvalidDataset with split, file and row: what is no Parquet file, no row at all, a cell that is too long; or
        without pyarrow; InputChanged when the file is no longer the one that was registered.
    """
    path, place = place_of(task, split)
    with path.open("rb") as stream:
        refuse_changed(task, place, hashlib.file_digest(stream, "sha256").hexdigest())
    number = 0
    for number, values in enumerate(_read(path, place), start=1):
        row = Row(place, number, 0, values, unit="row")
        if number > MAX_EXAMPLES:
            row.fail(f"more than {MAX_EXAMPLES} examples; split the file.")
        for column, value in values.items():
            if isinstance(value, str | bytes) and len(value) > max_cell_bytes:
                row.fail(f"column {column!r} holds {len(value):,} bytes, at most {max_cell_bytes:,} are read.")
        yield row
    if number == 0:
        place.fail("found no example, expected one a row.")


def _read(path: Path, place: Place) -> Iterator[dict[str, object]]:
    parquet, failures = _open_library(place)
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, use_threads=False):
                yield from batch.to_pylist()
    except MemoryError:  # pyarrow's own is one of its failures, too
        raise
    except failures as error:
        raise InvalidDataset(f"{place}: not a Parquet file that can be read ({str(error)[:200]}).") from error


def _open_library(place: Place) -> tuple[Any, tuple[type[Exception], ...]]:
    """Return pyarrow.parquet, untyped here, and what it raises."""
    try:
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError:
        place.fail(
            "reading Parquet needs pyarrow, which is not installed on this worker. Install it "
            "(`pip install 'amalgam[parquet]'`) and start the worker again, or make a task of JSON lines."
        )
    return parquet, (import_module("pyarrow").ArrowException, ValueError, OSError)
