"""Adapters from their headers: which tensors make up each low-rank update, and on which tensor of a base it lies.

An adapter stands for the dense model W + s·B·A (W: the base's tensor). Planning sees it as that dense model
(`as_dense`); workers/checkpoints/adapters.py computes its elements. Names are PEFT's, see docs/adapters.md.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, NoReturn

from app.domain.checkpoints import LoraConfig, Manifest, TensorSpec
from app.domain.errors import AdapterUnsupported, CheckpointInvalid, IncompatibleCheckpoints
from app.domain.lora_configs import rank_of, scaling_of

PREFIX = "base_model.model."
START = "params0."  # before a factor's name: its value at the start of a linearized training

AdapterSpace = Literal["delta", "factors", "concat", "shared"]
Role = Literal["a", "b"]
Kind = Literal["linear", "conv", "embedding"]

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<role>[AB])(\.[^.]+)?\.weight")
_EMBEDDING = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<role>[AB])(\.[^.]+)?")
_LINEARIZED = re.compile(r"(?P<module>.+)\.model\.lora_(?P<role>[AB])(\.[^.]+)?\.weight")  # fusion-bench's
_LINEARIZED_START = re.compile(r"(?P<module>.+)\.params0_values\.(?P<index>\d+)")
_REFUSED_PARTS = {
    "lora_magnitude_vector": "DoRA rescales the adapted weight, so it is no low-rank sum",
    "token_adapter": "trained rows of an embedding are not supported",
    "lora_B.bias": "a bias on lora_B is not supported",
}


@dataclass(frozen=True)
class LoraPart:
    """One low-rank update, in PEFT's orientation: B [out, r] times A [r, in] times `scaling`."""

    module: str  # path of the adapted module, without PEFT's prefix
    kind: Kind
    a: TensorSpec  # [r, in]; conv: [r, in, *kernel]
    b: TensorSpec  # [out, r]; conv: [out, r, 1, …]
    scaling: float
    a_start: TensorSpec | None = None  # A and B at the start of a linearized training
    b_start: TensorSpec | None = None

    @property
    def rank(self) -> int:
        """Its rank r."""
        return self.a.shape[0]

    @property
    def n_in(self) -> int:
        """Columns of the product; a kernel's positions count."""
        return prod(self.a.shape[1:])

    @property
    def n_out(self) -> int:
        """Rows of the product."""
        return self.b.shape[0]

    @property
    def is_linearized(self) -> bool:
        """Whether its start is known, so that it stands for the Taylor expansion there."""
        return self.a_start is not None


@dataclass(frozen=True)
class AdapterParts:
    """What an adapter is made of: low-rank updates by module path, and whole tensors by name."""

    lora: Mapping[str, LoraPart]
    full: Mapping[str, TensorSpec]  # modules_to_save, biases

    @property
    def is_linearized(self) -> bool:
        """Whether its updates are Taylor expansions around a known start."""
        return any(part.is_linearized for part in self.lora.values())


@dataclass(frozen=True)
class Placed:
    """What an adapter does to one tensor of the base: replaces it, adds an update, or both."""

    lora: LoraPart | None = None
    is_transposed: bool = False  # the base stores [in, out]: embeddings, GPT-2's Conv1D
    full: TensorSpec | None = None


def read_parts(tensors: Sequence[TensorSpec], config: LoraConfig) -> AdapterParts:
    """Return the parts of an adapter from its tensors and its config.

    Raises: CheckpointInvalid for a factor without its partner or of another rank than the config says;
        AdapterUnsupported for tensors of another kind of adapter.
    """
    factors, starts, full = _sort(tensors)
    lora = {module: _pair(module, found, starts.get(module, {}), config) for module, found in factors.items()}
    if not lora:
        raise CheckpointInvalid(
            f"Found {len(tensors)} tensors and no lora_A among them, expected the factors of a LoRA; is this "
            "PEFT's adapter_model.safetensors?"
        )
    linearized = {part.is_linearized for part in lora.values()}
    if len(linearized) > 1 or set(starts) - set(lora):
        raise CheckpointInvalid("Some modules have their start (params0) and some have not, expected all or none.")
    return AdapterParts(dict(sorted(lora.items())), dict(sorted(full.items())))


def parts_of(manifest: Manifest) -> AdapterParts:
    """Return the parts of an adapter checkpoint. Raises: as `read_parts`; CheckpointInvalid without a config."""
    return read_parts(manifest.tensors, _config(manifest))


def place(manifest: Manifest, base: Manifest) -> dict[str, Placed]:
    """Return what an adapter does to each tensor of a base, by the base's names; whole new tensors by their own.

    Raises: IncompatibleCheckpoints naming the module, what was found and the candidates; as `read_parts`.
    """
    parts = parts_of(manifest)
    config = _config(manifest)
    index = _index(base)
    placed: dict[str, Placed] = {}
    for name, spec in parts.full.items():
        found = _find(name, index)
        placed[found.name if found is not None else name] = Placed(full=replace_name(spec, found))
    for module, part in parts.lora.items():
        found = _find(f"{config.base_names.get(module, module)}.weight", index)
        if found is None:
            _refuse_homeless(module, index)
        _refuse_tied(module, found.name, base)
        before = placed.get(found.name, Placed())
        if before.lora is not None:
            raise IncompatibleCheckpoints(
                f"The adapter adapts {before.lora.module!r} and {module!r}, and both lie on tensor {found.name!r} of "
                "the base model; expected one. Name the base it was trained on."
            )
        is_transposed = _is_transposed(part, found, fan_in_fan_out=config.fan_in_fan_out)
        placed[found.name] = replace(before, lora=part, is_transposed=is_transposed)
    return placed


def as_dense(manifest: Manifest, base: Manifest) -> Manifest:
    """Return the manifest of the dense model that an adapter makes of a base; other kinds are returned as they are.

    Raises: as `place`.
    """
    if manifest.adapter is None:
        return manifest
    tensors = {tensor.name: tensor for tensor in base.tensors}
    for name, placed in place(manifest, base).items():
        if placed.full is not None:
            tensors[name] = placed.full.model_copy(update={"name": name})
    return manifest.model_copy(
        update={
            "tensors": tuple(tensors[name] for name in sorted(tensors)),
            "tied": base.tied,
            "vocab_size": base.vocab_size,
            "adapter": None,
        }
    )


def update_ranks(models: Sequence[Manifest], base: Manifest | None) -> dict[str, tuple[int | None, ...]]:
    """Return the highest rank that each model's update of a tensor can have, by the base's names, where some has one.

    0 where an adapter leaves the tensor as it is; None where it replaces it, or the model is dense.
    Raises: as `place`.
    """
    if base is None:
        return {}
    placed = [None if model.adapter is None else place(model, base) for model in models]
    names = sorted({name for one in placed if one is not None for name in one})
    return {
        name: tuple(None if one is None else _update_rank(one.get(name, Placed())) for one in placed) for name in names
    }


def _update_rank(placed: Placed) -> int | None:
    if placed.full is not None:
        return None
    if placed.lora is None:
        return 0
    return placed.lora.rank * (2 if placed.lora.is_linearized else 1)  # B·A₀ + B₀·(A − A₀)


def strip_prefix(name: str) -> str:
    """Return a tensor's name without PEFT's prefixes and wrappers: as the wrapped model would call it."""
    name = name.removeprefix(PREFIX)
    name = re.sub(r"\.modules_to_save(\.[^.]+)?(?=\.[^.]+$)", "", name)
    return name.replace(".base_layer.", ".")


def replace_name(spec: TensorSpec, found: TensorSpec | None) -> TensorSpec:
    """Return the spec under the base's name, where it has one."""
    return spec if found is None else spec.model_copy(update={"name": found.name})


# --- reading names --------------------------------------------------------------------------------------------------

Found = dict[tuple[Role, Kind], TensorSpec]


def _sort(tensors: Sequence[TensorSpec]) -> tuple[dict[str, Found], dict[str, Found], dict[str, TensorSpec]]:
    """Return factors and starts by module, and whole tensors by name."""
    factors: dict[str, Found] = defaultdict(dict)
    starts: dict[str, Found] = defaultdict(dict)
    indexed: dict[str, list[tuple[int, TensorSpec]]] = defaultdict(list)
    full: dict[str, TensorSpec] = {}
    for tensor in tensors:
        _refuse_parts(tensor.name)
        is_start = tensor.name.startswith(START)
        name = tensor.name.removeprefix(START).removeprefix(PREFIX)
        if numbered := _LINEARIZED_START.fullmatch(name):
            indexed[numbered["module"]].append((int(numbered["index"]), tensor))
        elif factor := _LINEARIZED.fullmatch(name) or _FACTOR.fullmatch(name):
            _add((starts if is_start else factors)[factor["module"]], factor["role"], "linear", tensor)
        elif factor := _EMBEDDING.fullmatch(name):
            _add((starts if is_start else factors)[factor["module"]], factor["role"], "embedding", tensor)
        else:
            full[strip_prefix(tensor.name)] = tensor
    for module, numbered_tensors in indexed.items():
        # fusion-bench numbers a module's parameters; A comes before B
        for role, (_, tensor) in zip("AB", sorted(numbered_tensors, key=lambda pair: pair[0]), strict=False):
            _add(starts[module], role, "linear", tensor)
    return dict(factors), dict(starts), full


def _add(found: Found, role: str, kind: Kind, tensor: TensorSpec) -> None:
    key: tuple[Role, Kind] = ("a" if role == "A" else "b", kind)
    if key in found:
        raise CheckpointInvalid(
            f"Tensors {found[key].name!r} and {tensor.name!r} are the same factor, expected one adapter in the file; "
            "save one adapter to a folder."
        )
    found[key] = tensor


def _refuse_parts(name: str) -> None:
    for part, reason in _REFUSED_PARTS.items():
        if part in name:
            raise AdapterUnsupported(
                f"Tensor {name!r}: {reason}. Merge the adapter into its base with PEFT (merge_and_unload), save that, "
                "and register the dense model."
            )


def _pair(module: str, found: Found, starts: Found, config: LoraConfig) -> LoraPart:
    kinds: set[Kind] = {kind for _, kind in found}
    kind: Kind = kinds.pop()
    a, b = found.get(("a", kind)), found.get(("b", kind))
    if kinds or a is None or b is None:
        raise CheckpointInvalid(
            f"Module {module!r} has {', '.join(sorted(repr(spec.name) for spec in found.values()))}, expected one "
            "lora_A and one lora_B; save the adapter again."
        )
    rank = rank_of(config, module)
    if len(a.shape) < 2 or len(a.shape) != len(b.shape) or a.shape[0] != rank or b.shape[1] != rank:
        _refuse_shapes(module, a, b, rank)
    if any(size != 1 for size in b.shape[2:]):
        _refuse_shapes(module, a, b, rank)
    start_a, start_b = starts.get(("a", kind)), starts.get(("b", kind))
    if starts and (start_a is None or start_b is None or (start_a.shape, start_b.shape) != (a.shape, b.shape)):
        raise CheckpointInvalid(f"Module {module!r}: its start (params0) does not have the shapes of its factors.")
    if len(a.shape) > 2:
        kind = "conv"
    return LoraPart(module, kind, a, b, scaling_of(config, module), start_a, start_b)


def _refuse_shapes(module: str, a: TensorSpec, b: TensorSpec, rank: int) -> NoReturn:
    raise CheckpointInvalid(
        f"Module {module!r} has factors A {list(a.shape)} and B {list(b.shape)}, and the config gives it rank {rank}; "
        "expected A [rank, in, …] and B [out, rank, …]. Register the adapter_config.json that belongs to these "
        "weights; grouped convolutions are not supported."
    )


# --- finding places -------------------------------------------------------------------------------------------------

Index = dict[str, list[TensorSpec]]


def _index(base: Manifest) -> Index:
    """Return the base's tensors by the last two parts of their names: whatever shares a suffix shares these."""
    index: Index = defaultdict(list)
    for tensor in base.tensors:
        index[_tail(tensor.name)].append(tensor)
    return index


def _tail(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _find(wanted: str, index: Index) -> TensorSpec | None:
    """Return the base's tensor of that name; else the only one that differs by a prefix on either side.

    Raises: IncompatibleCheckpoints naming the candidates, where there are several.
    """
    near = index.get(_tail(wanted), [])
    exact = [tensor for tensor in near if tensor.name == wanted]
    found = exact or [
        tensor for tensor in near if tensor.name.endswith(f".{wanted}") or wanted.endswith(f".{tensor.name}")
    ]
    if len(found) > 1:
        names = ", ".join(repr(tensor.name) for tensor in found[:5])
        raise IncompatibleCheckpoints(
            f"The adapter's {wanted!r} may be {len(found)} tensors of the base model: {names}. Rename the adapter's "
            "modules as the base's files have them."
        )
    return found[0] if found else None


def _refuse_homeless(module: str, index: Index) -> NoReturn:
    near = sorted(tensor.name for tensor in index.get(_tail(f"{module}.weight"), []))
    some = sorted(tensor.name for tensors in index.values() for tensor in tensors)
    hint = (
        f"it has {', '.join(map(repr, near[:3]))}"
        if near
        else f"its first tensor is {some[0]!r}"
        if some
        else "it is empty"
    )
    raise IncompatibleCheckpoints(
        f"The adapter adapts module {module!r}, and the base model has no tensor {module + '.weight'!r} ({hint}). Name "
        "the base model that the adapter was trained on."
    )


def _refuse_tied(module: str, name: str, base: Manifest) -> None:
    others = [other for group in base.tied if name in group for other in group if other != name]
    if others:
        raise IncompatibleCheckpoints(
            f"The adapter adapts module {module!r} alone, and the base model ties {name!r} to {', '.join(others)}: a "
            "dense model could not hold one without the other. Save the base untied (tie_word_embeddings: false) and "
            "register that."
        )


def _is_transposed(part: LoraPart, tensor: TensorSpec, *, fan_in_fan_out: bool) -> bool:
    """Tell how the base stores the weight; its shape decides, and for a square one the config."""
    plain = (part.n_out, *part.a.shape[1:])
    if part.kind == "conv":
        fits, fits_transposed = tensor.shape == plain, False
    elif part.kind == "embedding":
        fits, fits_transposed = False, tensor.shape == plain[::-1]
    else:
        fits, fits_transposed = tensor.shape == plain, tensor.shape == plain[::-1]
    if not fits and not fits_transposed:
        raise IncompatibleCheckpoints(
            f"The adapter's update of module {part.module!r} is {list(plain)}, and tensor {tensor.name!r} of the base "
            f"model is {list(tensor.shape)}. Name the base model that the adapter was trained on."
        )
    return fan_in_fan_out if fits and fits_transposed else fits_transposed


def _config(manifest: Manifest) -> LoraConfig:
    if manifest.adapter is None:
        raise CheckpointInvalid(
            "The adapter was registered without its adapter_config.json; register its folder again."
        )
    return manifest.adapter
