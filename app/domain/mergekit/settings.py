"""mergekit's parameter values: a number or flag, a list that is interpolated over the layers, or a list of conditions.

A condition holds for the tensors whose name contains its `filter`; the first that holds wins. Here the same is said by
overrides, of which the last wins, so they come in the opposite order. A list is interpolated over the layers, and
outside of them mergekit takes its first number: so the first number is the parameter, and an override for the tensors
inside of numbered blocks holds the list.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from app.domain.errors import near_match
from app.domain.mergekit.documents import Node
from app.domain.mergekit.fields import Faults
from app.domain.mergekit.methods import Kind

IN_BLOCKS = "*.[0-9]*.*"  # names that number a block: `model.layers.0.mlp.up_proj.weight`
CONDITION_KEYS = ("filter", "value")

One = float | bool
Value = One | list[float]
Place = tuple[str, int]  # pointer into the document, line
Facet = str | int | tuple[int, str]  # what is set: a parameter, a model's weight by index, a model's own parameter
Assign = Callable[[One], Mapping[Facet, JsonValue]]  # one value of theirs -> what is set of ours


@dataclass(frozen=True)
class Condition:
    """A value, and the part of a tensor's name that it is for; None: for every tensor."""

    filter: str | None
    value: Value
    place: Place | None = None  # None: mergekit's default


@dataclass(frozen=True)
class Override:
    """One override of the request, and where the document says it."""

    match: str
    assigned: Mapping[Facet, JsonValue]
    place: Place | None


Setting = tuple[Condition, ...]  # the first that holds wins; resolved: the last is for every tensor


def glob_of(text: str) -> str:
    """Return the glob of the names that contain a text."""
    escaped = "".join(f"[{character}]" if character in "*?[" else character for character in text)
    return f"*{escaped}*"


def read_setting(node: Node, pointer: str, kind: Kind, faults: Faults) -> Setting:
    """Return what a parameter is set to; what cannot be read is noted as a fault and left out."""
    if isinstance(node.value, dict):
        return _read_conditions([(pointer, node)], kind, faults)
    if isinstance(node.value, list) and any(isinstance(item.value, dict) for item in node.value):
        return _read_conditions([(f"{pointer}/{at}", item) for at, item in enumerate(node.value)], kind, faults)
    value = _read_value(node, pointer, kind, faults)
    return () if value is None else (Condition(None, value, (pointer, node.line)),)


def resolve(sources: Sequence[Setting], default: JsonValue) -> Setting | None:
    """Return the conditions that count, the last one for every tensor; None where some tensors would have no value."""
    kept: list[Condition] = []
    for condition in (condition for source in sources for condition in source):
        kept.append(condition)
        if condition.filter is None:
            return tuple(kept)
    if not isinstance(default, (int, float)):
        return None
    return (*kept, Condition(None, default))


def plain_value(setting: Setting) -> One | None:
    """Return the value that holds for every tensor, or None where it differs between tensors."""
    value = setting[0].value
    return value if setting[0].filter is None and not isinstance(value, list) else None


def say(setting: Setting, assign: Assign) -> tuple[Mapping[Facet, JsonValue], list[Override]]:
    """Return what holds for every tensor, and the overrides of it, in the order of the request."""
    *conditions, rest = setting
    overrides = list(_say_gradient(rest, IN_BLOCKS, assign))
    for condition in reversed(conditions):
        match = glob_of(condition.filter or "")
        overrides.append(Override(match, assign(_first(condition.value)), condition.place))
        overrides += _say_gradient(condition, IN_BLOCKS + match[1:], assign)
    return assign(_first(rest.value)), overrides


def _say_gradient(condition: Condition, match: str, assign: Assign) -> Iterator[Override]:
    if not isinstance(condition.value, list):
        return
    steps = [assign(value) for value in condition.value]
    gradients: dict[Facet, JsonValue] = {name: [step[name] for step in steps] for name in steps[0]}
    yield Override(match, gradients, condition.place)


def _first(value: Value) -> One:
    return value[0] if isinstance(value, list) else value


def _read_conditions(items: Sequence[tuple[str, Node]], kind: Kind, faults: Faults) -> Setting:
    found = [_read_condition(item, pointer, kind, faults) for pointer, item in items]
    return tuple(condition for condition in found if condition is not None)


def _read_condition(node: Node, pointer: str, kind: Kind, faults: Faults) -> Condition | None:
    if not isinstance(node.value, dict):
        faults.add(pointer, node, "expected {filter: …, value: …} beside the other conditions")
        return None
    for name in node.value:
        if name not in CONDITION_KEYS:
            message = f"unknown key {name!r}; a condition has filter and value"
            faults.add(f"{pointer}/{name}", node.value[name], message, near_match(name, CONDITION_KEYS))
    if "value" not in node.value:
        faults.add(pointer, node, "the condition has no value")
        return None
    wanted = node.value.get("filter")
    if wanted is not None and not isinstance(wanted.value, str | None):
        faults.add(f"{pointer}/filter", wanted, "a filter is text: a part of a tensor's name; put it in quotes")
        return None
    value = _read_value(node.value["value"], f"{pointer}/value", kind, faults)
    text = wanted.value if wanted is not None and isinstance(wanted.value, str) else None
    return None if value is None else Condition(None if text in ("*", "") else text, value, (pointer, node.line))


def _read_value(node: Node, pointer: str, kind: Kind, faults: Faults) -> Value | None:
    if isinstance(node.value, list):
        if kind != "number" or len(node.value) == 0:
            faults.add(pointer, node, f"expected one {kind}, found a list of {len(node.value)}")
            return None
        steps = [_read_one(item, f"{pointer}/{at}", kind, faults) for at, item in enumerate(node.value)]
        whole = [step for step in steps if step is not None]
        return (whole if len(whole) > 1 else whole[0]) if len(whole) == len(steps) else None
    return _read_one(node, pointer, kind, faults)


def _read_one(node: Node, pointer: str, kind: Kind, faults: Faults) -> One | None:
    value = node.value
    if kind == "flag" and isinstance(value, bool):
        return value
    if kind == "integer" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind == "number" and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        number = _to_number(value)
        if number is not None:
            return number
    expected = {"flag": "true or false", "integer": "a whole number", "number": "a finite number"}[kind]
    what = "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)[:80]
    faults.add(pointer, node, f"expected {expected}, found {what}")
    return None


def _to_number(value: float | str) -> float | None:
    try:
        number = float(value)  # text too: mergekit reads '1e-5' so
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
