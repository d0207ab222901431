"""The options that commands share, and how `key=value`, weights and places are read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from app.cli.client import DEFAULT_URL, Document

Url = Annotated[str, typer.Option("--url", envvar="AMALGAM_URL", help="Where the service is.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the service's answer as JSON.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until the work has ended, with a progress bar.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", "-t", metavar="KEY=VALUE", help="A tag; repeatable.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="At most so many.")]

DEFAULT_PLACE = DEFAULT_URL


def read_tags(tags: Sequence[str] | None) -> dict[str, str]:
    """Read `key=value` items."""
    return dict(split_pair(item, "--tag") for item in tags or ())


def read_parameters(items: Sequence[str] | None) -> Document:
    """Read `name=value` items; a value that is JSON is taken as such (0.2, true, [1, 2]), any other as text."""
    return {name: read_value(value) for name, value in (split_pair(item, "--parameter") for item in items or ())}


def read_models(items: Sequence[str]) -> list[Document]:
    """Read `ref` or `ref=weight` items."""
    return [_read_model(item) for item in items]


def place_of(source: str) -> str:
    """Return a URI as it is, and a path of this machine as a file: URI."""
    if "://" in source or source.startswith("file:"):
        return source
    return Path(source).absolute().as_uri()


def _read_model(item: str) -> Document:
    reference, separator, weight = item.rpartition("=")
    if not separator:
        return {"checkpoint": item}
    try:
        return {"checkpoint": reference, "weight": float(weight)}
    except ValueError:
        message = f"the weight in {item!r} is not a number; expected REF or REF=WEIGHT, as in emoji-expert=0.5"
        raise typer.BadParameter(message) from None


def split_pair(item: str, option: str) -> tuple[str, str]:
    """Read `name=value`."""
    name, separator, value = item.partition("=")
    if not separator or not name:
        raise typer.BadParameter(f"{item!r} is not of the form name=value", param_hint=option)
    return name, value


def read_value(text: str) -> object:
    """Read a value: JSON as such (0.2, true, [1, 2]), any other as text."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        return text


def _refuse_constant(text: str) -> object:
    raise ValueError(text)  # NaN is no JSON: it goes on as text, and the service says what it expects instead
