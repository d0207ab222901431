"""Overrides of ours, put back into mergekit's conditions; the other way of settings.py."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from app.domain.errors import FieldProblem
from app.domain.mergekit.settings import IN_BLOCKS, glob_of

Value = Any  # JSON: a number, a flag, or a list of numbers
Chain = list[tuple[str | None, Value]]  # (filter, value), the first that holds wins; the last is for every tensor


@dataclass(frozen=True)
class Change:
    """One override's value for what is looked at."""

    pointer: str
    match: str
    value: Value


def chain_of(first: Change, changes: Iterable[Change], faults: list[FieldProblem]) -> Chain:
    """Return the conditions that say what a value for every tensor and overrides of it say."""
    chain: Chain = [(None, first.value)]  # the last wins, until it is turned around
    if _is_gradient(first.value) and first.value[0] != first.value[-1]:
        message = "outside of the layers mergekit takes the first number of a list, Amalgam also the last"
        faults.append(FieldProblem(first.pointer, message))
    for change in changes:
        filter_, value = chain[-1]
        place = IN_BLOCKS if filter_ is None else IN_BLOCKS + glob_of(filter_)[1:]
        if _is_gradient(change.value):
            if change.match == place and change.value[0] == value:
                chain[-1] = (filter_, change.value)
            else:
                message = f"a list over the layers for the tensors {change.match!r} has no condition in mergekit"
                faults.append(FieldProblem(change.pointer, message))
            continue
        text = text_of(change.match)
        if text is None:
            message = f"{change.match!r} is no filter of mergekit's: expected a text between two stars, as in '*mlp*'"
            faults.append(FieldProblem(change.pointer, message))
        else:
            chain.append((text, change.value))
    return chain[::-1]


def text_of(glob: str) -> str | None:
    """Return the text whose glob it is, or None where it is another kind of glob."""
    if len(glob) < 3 or not (glob.startswith("*") and glob.endswith("*")):
        return None
    inner = glob[1:-1]
    for character in "*?[":
        inner = inner.replace(f"[{character}]", f"\0{'*?['.index(character)}")
    if any(character in inner for character in "*?["):
        return None
    for at, character in enumerate("*?["):
        inner = inner.replace(f"\0{at}", character)
    return inner if glob_of(inner) == glob else None


def say(chain: Chain) -> Value:
    """Return the conditions as the document writes them."""
    if len(chain) == 1:
        return chain[0][1]
    return [{"value": value} if filter_ is None else {"filter": filter_, "value": value} for filter_, value in chain]


def filters_of(chain: Chain) -> Sequence[str | None]:
    """Return the filters, in order."""
    return [filter_ for filter_, _ in chain]


def _is_gradient(value: Value) -> bool:
    return isinstance(value, (list, tuple))
