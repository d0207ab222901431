"""A merge as mergekit writes it, read as a request of ours.

What mergekit passes over in silence is refused here: unknown keys, parameters of other methods, parameters of the base
model. Beside mergekit's own keys the document may have `amalgam`, a mapping of what only our requests have: `output`,
`evaluate`, `seed`, `exclude`, …; mergekit does not look at it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from app.domain.errors import FieldProblem, UnknownMethod, near_match
from app.domain.mergekit import documents, layers
from app.domain.mergekit.documents import Node
from app.domain.mergekit.fields import (
    Faults,
    Input,
    Settings,
    read_mapping,
    read_parameters,
    read_ref,
    read_text,
)
from app.domain.mergekit.methods import BY_NAME, KnownMethod
from app.domain.mergekit.tokenizers import TOKENIZER_KEYS, check_tokenizer
from app.domain.mergekit.translation import translate

OURS = "amalgam"  # the key of what mergekit has no word for
BESIDE = (
    "output", "evaluate", "seed", "force", "priority", "max_attempts", "timeout_seconds", "include", "exclude",
    "nan_policy", "tensors", "merge_buffers", "adapter_space", "transforms", "post_steps", "method_version",
    "engine_version",
)  # fmt: skip
MODULES = "modules"
KEYS = (
    "merge_method", "base_model", "models", "slices", MODULES, "parameters", "dtype", "out_dtype", *TOKENIZER_KEYS,
    OURS,
)  # fmt: skip
NOT_READ = {"chat_template": "Amalgam keeps the chat template of the base model, else of the first model"}
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Reading:
    """A request, and where the document says what."""

    request: dict[str, JsonValue]
    origins: Mapping[str, tuple[str, int]]  # pointer into the request -> pointer into the document, and its line

    def place(self, fault: FieldProblem) -> FieldProblem:
        """Return a fault of the request with its place in the document."""
        steps = fault.pointer.split("/")
        for n in range(len(steps), 1, -1):
            origin = self.origins.get("/".join(steps[:n]))
            if origin is not None:
                return FieldProblem(origin[0], f"line {origin[1]}: {fault.message}", fault.did_you_mean)
        return fault


def read_merge(body: bytes) -> Reading:
    """Return the request that a mergekit document makes.

    Raises: BadRequest for what is no YAML; UnknownMethod; Invalid naming every fault at once.
    """
    root = documents.read(body)
    faults = Faults()
    top = read_mapping(root, "", KEYS, faults, not_read=NOT_READ)
    known = _read_method(top, root, faults)
    base = read_ref(top["base_model"], "/base_model", faults) if "base_model" in top else None
    beside = _read_beside(top, faults)
    part = _read_part(top, root, faults)
    if known.ours == layers.PASSTHROUGH:
        translated = layers.read_passthrough(part.named, base, part.settings, faults, part.pointer)
    else:
        inputs, n_blocks = _read_inputs(part, faults)
        _check_inputs(known, root, base, inputs, faults)
        translated = translate(known, base, inputs, part.settings, faults)
        translated.request.update({"n_blocks": n_blocks} if n_blocks is not None else {})
    refs = [str(model["checkpoint"]) for model in translated.request.get("models", [])]
    travels = translated.request.get("base_model") or next(iter(refs), None)
    check_tokenizer(top, base=base.ref if base is not None else travels, travels=travels, faults=faults)
    faults.stop()
    origins = {**_origins_of(beside, top), **translated.origins}
    return Reading({"method": known.ours, **translated.request, **beside}, origins)


def _read_method(top: Mapping[str, Node], root: Node, faults: Faults) -> KnownMethod:
    given = top.get("merge_method")
    if given is None:
        faults.add("/merge_method", root, f"merge_method is missing; known here: {', '.join(BY_NAME)}")
        faults.stop()
    name = read_text(given or root, "/merge_method", "the name of a method", faults) or ""
    if not name:
        faults.stop()
    if name not in BY_NAME:
        message = f"{name[:80]!r} is no method that both know; known here: {', '.join(BY_NAME)}"
        problem = FieldProblem("/merge_method", f"line {(given or root).line}: {message}", near_match(name, BY_NAME))
        raise UnknownMethod(f"/merge_method: {problem.message}", errors=[problem])
    return BY_NAME[name]


@dataclass(frozen=True)
class _Part:
    """The mapping that names the models: the document, or its only module."""

    named: Mapping[str, Node]
    settings: Settings
    pointer: str = ""


def _read_part(top: Mapping[str, Node], root: Node, faults: Faults) -> _Part:
    part = _Part(top, read_parameters(top, ""))
    if MODULES in top and "models" not in top and "slices" not in top:
        part = _read_module(top[MODULES], part, faults)
    if ("models" in part.named) == ("slices" in part.named) or (MODULES in top and part.named is top):
        faults.add(f"{part.pointer}/models", root, f"expected one of models, slices and {MODULES}")
        faults.stop()
    return part


def _read_module(node: Node, whole: _Part, faults: Faults) -> _Part:
    """Return the only module: mergekit's way to say models or slices for one part of a model of several."""
    modules = node.value if isinstance(node.value, dict) else {}
    if len(modules) != 1:
        message = (
            f"expected one module, found {len(modules)}; Amalgam finds the parts of a model from its tensors' names"
        )
        faults.add(f"/{MODULES}", node, f"{message}: merge whole models, with overrides for parts that differ")
        faults.stop()
    (name, item), *_ = modules.items()
    pointer = f"/{MODULES}/{name}"
    mapping = read_mapping(item, pointer, ("models", "slices", "parameters"), faults)
    return _Part(mapping, (*read_parameters(mapping, pointer), *whole.settings), pointer)


def _read_inputs(part: _Part, faults: Faults) -> tuple[list[Input], int | None]:
    """Return the models, and how many layers they must have: None where the document does not say."""
    if "slices" in part.named:
        return layers.read_whole_models(part.named["slices"], faults, part.pointer)
    return layers.read_models(part.named["models"], faults, part.pointer), None


def _check_inputs(known: KnownMethod, root: Node, base: Input | None, inputs: Sequence[Input], faults: Faults) -> None:
    if base is None and known.base in ("required", "start"):
        faults.add("/base_model", root, f"{known.theirs} needs base_model")
    seen: set[str] = set()
    for one in inputs:
        if one.ref in seen:
            node = Node(one.ref, one.line)
            faults.add(one.pointer, node, f"{one.ref!r} is named twice, which mergekit refuses; add the weights up")
        seen.add(one.ref)


def _read_beside(top: Mapping[str, Node], faults: Faults) -> dict[str, Any]:
    """Return what the request says beside method, models and parameters."""
    beside: dict[str, Any] = {}
    if OURS in top:
        ours = read_mapping(top[OURS], f"/{OURS}", BESIDE, faults)
        beside = {name: node.to_json() for name, node in ours.items()}
    dtype = _read_dtype(top, faults)
    if dtype is not None:
        output = beside.get("output", {})
        beside["output"] = {"dtype": dtype, **output} if isinstance(output, dict) else output
    return beside


def _read_dtype(top: Mapping[str, Node], faults: Faults) -> str | None:
    """Return the dtype that is written: out_dtype, else dtype; what mergekit computes in is not asked for."""
    found: str | None = None
    for name in ("dtype", "out_dtype"):
        if name not in top:
            continue
        text = read_text(top[name], f"/{name}", f"one of {', '.join(DTYPES)}", faults)
        if text is not None and text.removeprefix("torch.") not in DTYPES:
            faults.add(f"/{name}", top[name], f"expected one of {', '.join(DTYPES)}, found {text[:80]!r}")
        found = None if text is None else text.removeprefix("torch.")
    return found


def _origins_of(beside: Mapping[str, object], top: Mapping[str, Node]) -> dict[str, tuple[str, int]]:
    origins = {"/method": ("/merge_method", top["merge_method"].line)}
    if OURS in top:
        origins |= {f"/{name}": (f"/{OURS}/{name}", top[OURS].line) for name in beside}
    for name in ("dtype", "out_dtype"):
        if name in top:
            origins["/output/dtype"] = (f"/{name}", top[name].line)
    return origins
