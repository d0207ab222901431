"""Whose tokenizer a mergekit document asks for, against whose tokenizer travels into the result.

Here it is the base model's, else the first model's, as it is; mergekit can also make a vocabulary of its own.
"""

from collections.abc import Mapping

from app.domain.mergekit.documents import Node
from app.domain.mergekit.fields import Faults, read_text

TOKENIZER_KEYS = ("tokenizer_source", "tokenizer")
BASE = "base"
_ONE_VOCABULARY = "Amalgam merges vocabularies of one size, entry by entry"
_NOT_HERE = {
    "tokens": f"{_ONE_VOCABULARY}; set single embeddings in the models before, and leave it out",
    "pad_to_multiple_of": f"{_ONE_VOCABULARY}; pad the embeddings of all models alike before, and leave it out",
}


def check_tokenizer(top: Mapping[str, Node], *, base: str | None, travels: str | None, faults: Faults) -> None:
    """Check that the tokenizer that is asked for is the one that travels into the result.

    base: the ref that mergekit calls base: the base model's, else the first model's; travels: whose files are copied.
    """
    for name in TOKENIZER_KEYS:
        if name not in top:
            continue
        node, pointer = top[name], f"/{name}"
        if name == "tokenizer" and isinstance(node.value, dict):
            _check_keys(node, faults)
            node, pointer = node.value.get("source", Node(BASE, node.line)), "/tokenizer/source"
        source = read_text(node, pointer, f"{BASE!r} or the ref of a checkpoint", faults)
        if source is not None:
            _check_source(source, node, pointer, base=base, travels=travels, faults=faults)


def _check_keys(node: Node, faults: Faults) -> None:
    for name, item in node.value.items() if isinstance(node.value, dict) else ():
        if name != "source" and item.value is not None:
            reason = _NOT_HERE.get(name, "mergekit would pass over it; known here: source")
            faults.add(f"/tokenizer/{name}", item, f"{name} cannot be honored: {reason}")


def _check_source(  # noqa: PLR0913 a place, and two refs
    source: str, node: Node, pointer: str, *, base: str | None, travels: str | None, faults: Faults
) -> None:
    if travels is None or (base if source == BASE else source) == travels:
        return
    if source == "union":
        why = f"{_ONE_VOCABULARY}; give all models one vocabulary first, and ask for {BASE!r}"
    else:
        why = f"the tokenizer of {travels!r} travels along; name that one, or copy another into the result"
    faults.add(pointer, node, f"the tokenizer {source[:80]!r} cannot be honored: {why}")
