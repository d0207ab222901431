"""The rows of a task's data file, whatever form its name says."""

from collections.abc import Iterator
from pathlib import PurePosixPath

from app.domain.tasks import LocalTask
from workers.datasets import lines, parquet
from workers.datasets.lines import MAX_LINE_BYTES, Row, place_of


def read_rows(task: LocalTask, split: str, *, max_bytes: int = MAX_LINE_BYTES) -> Iterator[Row]:
    """Yield the rows of one split; when all are read, the file is known to be the one that was registered.

    max_bytes: of a line of JSON, or of a cell of Parquet.
    Raises: InvalidDataset with split, file and line or row; InputChanged.
    """
    _, place = place_of(task, split)
    if PurePosixPath(place.file).suffix.lower() == ".parquet":
        return parquet.read_rows(task, split, max_cell_bytes=max_bytes)
    return lines.read_rows(task, split, max_line_bytes=max_bytes)
