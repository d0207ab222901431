"""What the command line prints: data on stdout (tables or JSON), words about it on stderr."""

import json
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.client import Document

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(document: object) -> None:
    """Print a document for other programs to read."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print rows under their columns; `empty` is said where there is no row."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    if table.row_count:
        Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)
    else:
        err.print(empty)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print one thing, a line per fact; facts that are None are left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields:
        if value is not None and value != "":
            table.add_row(name, Text(str(value)))
    out.print(table)


def print_problem(problem: Document, *, as_json: bool = False) -> None:
    """Print a problem in the service's own words: its detail, then each field with its near match."""
    if as_json:
        sys.stderr.write(json.dumps(problem, indent=2, ensure_ascii=False) + "\n")
        return
    code = f" ({problem['code']})" if problem.get("code") else ""
    err.print(Text(f"Error: {problem.get('detail') or problem.get('title')}{code}", style="red"))
    for field in problem.get("errors") or []:
        near = f" Did you mean {field['did_you_mean']!r}?" if field.get("did_you_mean") else ""
        err.print(Text(f"  {field['pointer'] or '/'}: {field['message']}{near}"))
    if problem.get("request_id"):
        err.print(Text(f"  request {problem['request_id']}", style="dim"))


def bytes_text(size: int | float | None) -> str | None:
    """Return a size as people read it: 87.3 MB."""
    if size is None:
        return None
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def seconds_text(seconds: float | None) -> str | None:
    """Return a span as people read it: 4.2 s, 3 min 5 s."""
    if seconds is None:
        return None
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def tags_text(tags: Document | None) -> str | None:
    """Return tags as key=value, in order of the keys."""
    return ", ".join(f"{key}={value}" for key, value in sorted((tags or {}).items())) or None
