"""Strict YAML: one document of plain values, each with its line; read from events, so that nothing is ever built.

Refused are duplicate keys, tags, NaN and infinity, nesting and aliases without bounds, and a second document. Scalars
are what YAML 1.2 calls them, beside `yes`, `no`, `on` and `off`, which PyYAML takes for flags.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml
from pydantic import JsonValue

from app.domain.errors import BadRequest, FieldProblem, Invalid

MAX_DEPTH = 16  # of nesting; a merge needs 7
MAX_NODES = 100_000  # values of a document, aliases written out

Scalar: TypeAlias = str | int | float | bool | None

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # Any: two classes without a common base
_NULLS = {"", "~", "null", "Null", "NULL"}
_FLAGS = {
    word: flag
    for flag, words in ((True, ("true", "yes", "on")), (False, ("false", "no", "off")))
    for lower in words
    for word in (lower, lower.capitalize(), lower.upper())
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
_FLOAT = re.compile(r"[-+]?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)")
_ENDLESS = re.compile(r"([-+]?\.(inf|Inf|INF))|\.(nan|NaN|NAN)")


@dataclass(frozen=True)
class Node:
    """A value of the document, and where it stands."""

    value: "Scalar | list[Node] | dict[str, Node]"
    line: int  # counted from 1
    n_nodes: int = 1  # written out
    height: int = 0  # levels below

    def to_json(self) -> JsonValue:
        """Return the value without lines."""
        if isinstance(self.value, list):
            return [item.to_json() for item in self.value]
        if isinstance(self.value, dict):
            return {name: item.to_json() for name, item in self.value.items()}
        return self.value


@dataclass
class _Open:
    """A list or a mapping that has begun and not ended."""

    event: yaml.Event
    line: int
    items: list[Node] = field(default_factory=list)  # of a mapping: keys and values in turn


def read(body: bytes) -> Node:
    """Return the document.

    Raises: BadRequest for text that cannot be read, with its line; Invalid for NaN and infinity.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"The body is not UTF-8: byte {error.start} does not belong. Send YAML in UTF-8.") from None
    try:
        root = _build(yaml.parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        where = error.problem_mark
        place = f" at line {where.line + 1}, column {where.column + 1}" if where is not None else ""
        raise BadRequest(f"The body is not valid YAML: {error.problem}{place}. Send one YAML document.") from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise BadRequest(f"The body is not valid YAML: {str(error).splitlines()[0]}. Send one YAML document.") from None
    if root is None:
        raise BadRequest("The body holds no YAML document. Send a merge as mergekit writes it.")
    return root


def _build(events: Iterator[yaml.Event]) -> Node | None:
    open_: list[_Open] = []
    anchors: dict[str, Node] = {}
    root: Node | None = None
    n_nodes = 0
    for event in events:
        line = event.start_mark.line + 1 if event.start_mark is not None else 1
        if isinstance(event, yaml.DocumentStartEvent) and root is not None:
            raise _refuse("a second document", line, "Send one")
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            _check(event, line, len(open_) + 1)
            open_.append(_Open(event, line))
            continue
        node = _finish(event, line, open_, anchors)
        if node is None:
            continue
        n_nodes += node.n_nodes if isinstance(event, yaml.AliasEvent) else 1
        if n_nodes > MAX_NODES:
            raise _refuse(f"more than {MAX_NODES} values, aliases written out", line, "Send a smaller document")
        if len(open_) + node.height > MAX_DEPTH:
            raise _too_deep(line)
        if open_:
            open_[-1].items.append(node)
        else:
            root = node
    return root


def _finish(event: yaml.Event, line: int, open_: list[_Open], anchors: dict[str, Node]) -> Node | None:
    """Return the value that an event completes, or None."""
    if isinstance(event, yaml.AliasEvent):
        name = str(event.anchor)
        if name not in anchors:
            raise _refuse(f"the alias *{name[:80]} of nothing that has ended", line, "Write it out")
        return anchors[name]
    if isinstance(event, yaml.ScalarEvent):
        _check(event, line, len(open_))
        node, anchor = Node(_resolve(event, line), line), event.anchor
    elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
        done = open_.pop()
        node, anchor = _close(done), done.event.anchor  # type: ignore[attr-defined]  # it is a start event
    else:
        return None
    if anchor is not None:
        anchors[anchor] = node
    return node


def _close(done: _Open) -> Node:
    n_nodes = 1 + sum(item.n_nodes for item in done.items)
    height = 1 + max((item.height for item in done.items), default=0)
    if isinstance(done.event, yaml.SequenceStartEvent):
        return Node(done.items, done.line, n_nodes, height)
    pairs: dict[str, Node] = {}
    for key, value in zip(done.items[::2], done.items[1::2], strict=True):
        if not isinstance(key.value, str):
            raise _refuse(f"the key {_short(key.value)}", key.line, "Keys are text; put it in quotes")
        if key.value in pairs:
            raise _refuse(f"the key {_short(key.value)} twice in one mapping", key.line, "Say it once")
        pairs[key.value] = value
    return Node(pairs, done.line, n_nodes, height)


def _check(event: Any, line: int, depth: int) -> None:  # Any: the events that begin a value share no class
    if depth > MAX_DEPTH:
        raise _too_deep(line)
    if event.tag is not None and event.tag != "!":
        raise _refuse(f"the tag {str(event.tag)[:80]!r}", line, "Leave it out; values are text, numbers and flags")


def _resolve(event: yaml.ScalarEvent, line: int) -> Scalar:
    text = str(event.value)
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise _refuse("text with NUL or with half a character", line, "Leave it out")
    is_plain = event.implicit[0] and event.style not in ("'", '"', "|", ">")
    return _read_plain(text, line) if is_plain else text


def _read_plain(text: str, line: int) -> Scalar:
    if text in _NULLS:
        return None
    if text in _FLAGS:
        return _FLAGS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _ENDLESS.fullmatch(text):
        raise _refuse_number(text, line)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            raise _refuse_number(text, line)
        return number
    return text


def _refuse(what: str, line: int, advice: str) -> BadRequest:
    return BadRequest(f"The body has {what} (line {line}). {advice}.")


def _too_deep(line: int) -> BadRequest:
    return _refuse(f"more than {MAX_DEPTH} levels", line, "Send a flatter document")


def _refuse_number(text: str, line: int) -> Invalid:
    message = f"line {line}: must be a finite number, found {text[:80]}"
    return Invalid(f"The body holds no number: {message}.", errors=[FieldProblem("/", message)])


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, (list, dict)) else type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."
