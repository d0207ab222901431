"""The forms that a mergekit document is made of: mappings of known keys, lists, refs, inputs; faults are gathered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.domain.errors import FieldProblem, Invalid, near_match
from app.domain.mergekit.documents import Node

MAX_FAULTS = 50

Settings = tuple[tuple[str, Node], ...]  # mappings of parameters with their pointers, the nearest first


@dataclass
class Faults:
    """Every fault of a document, with pointers and lines."""

    found: list[FieldProblem] = field(default_factory=list)

    def add(self, pointer: str, node: Node, message: str, near: str | None = None) -> None:
        """Note a fault at a node."""
        self.found.append(FieldProblem(pointer or "/", f"line {node.line}: {message}", near))

    def stop(self) -> None:
        """Raise Invalid if there are any."""
        found = list(dict.fromkeys(self.found))  # what all models share is read once for each
        if not found:
            return
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise Invalid(f"{found[0].pointer}: {found[0].message}{more}", errors=found[:MAX_FAULTS])


@dataclass(frozen=True)
class Input:
    """A model that the document names."""

    ref: str
    pointer: str  # of the ref
    line: int
    parameters: Settings = ()  # its own


def read_mapping(
    node: Node, pointer: str, known: Sequence[str], faults: Faults, *, not_read: Mapping[str, str] | None = None
) -> dict[str, Node]:
    """Return the values that are not null, by key; other keys than the known ones are faults."""
    if not isinstance(node.value, dict):
        faults.add(pointer, node, f"expected a mapping of {', '.join(known)}")
        return {}
    kept: dict[str, Node] = {}
    for name, item in node.value.items():
        if item.value is None:
            continue
        if name in known:
            kept[name] = item
        elif not_read is not None and name in not_read:
            faults.add(f"{pointer}/{name}", item, f"{name} is not read: {not_read[name]}; leave it out")
        else:
            message = f"unknown key {name!r}, which mergekit would pass over; known here: {', '.join(known)}"
            faults.add(f"{pointer}/{name}", item, message, near_match(name, known))
    return kept


def read_list(node: Node, pointer: str, what: str, faults: Faults) -> list[tuple[str, Node]]:
    """Return the items of a list that is not empty, with their pointers."""
    if not isinstance(node.value, list) or not node.value:
        faults.add(pointer, node, f"expected a list of {what}")
        return []
    return [(f"{pointer}/{at}", item) for at, item in enumerate(node.value)]


def read_text(node: Node, pointer: str, what: str, faults: Faults) -> str | None:
    """Return a text."""
    if isinstance(node.value, str) and node.value:
        return node.value
    faults.add(pointer, node, f"expected {what}, as text; put it in quotes if it looks like a number")
    return None


def read_input(mapping: Mapping[str, Node], pointer: str, node: Node, faults: Faults) -> Input | None:
    """Return the model that an item of `models` or of `sources` names, without its settings."""
    if "model" not in mapping:
        faults.add(pointer, node, "model is missing; name a checkpoint")
        return None
    return read_ref(mapping["model"], f"{pointer}/model", faults)


def read_ref(node: Node, pointer: str, faults: Faults) -> Input | None:
    """Return a model: in mergekit a path, here the ref of a checkpoint."""
    text = read_text(node, pointer, "the ref of a checkpoint", faults)
    if text is not None and "+" in text:
        message = f"{text[:80]!r} adds an adapter to a model; register the sum as a checkpoint and name that"
        faults.add(pointer, node, message)
        return None
    return None if text is None else Input(text, pointer, node.line)


def read_parameters(mapping: Mapping[str, Node], pointer: str) -> Settings:
    """Return the settings of a mapping: none or one."""
    return ((f"{pointer}/parameters", mapping["parameters"]),) if "parameters" in mapping else ()
