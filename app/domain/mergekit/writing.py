"""A recipe of ours, written as mergekit reads it, where mergekit can do the same; what it cannot say is named.

Read again by reading.py, the document gives the same recipe. What mergekit has no word for, and what does not change
what it does (seed, size of files, versions), stands under `amalgam`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from app.domain.errors import FieldProblem, NotAcceptable
from app.domain.mergekit.conditions import Chain, Change, chain_of, filters_of, say, text_of
from app.domain.mergekit.layers import PASSTHROUGH, SCALE
from app.domain.mergekit.methods import DENSITY, FLATTEN, KNOWN_METHODS, ROW_WISE, KnownMethod, Renamed, Switched
from app.domain.recipes import PinnedCheckpoint, Recipe

HEAD = """\
# Written by Amalgam. The models are refs of checkpoints by their content: POST /v1/merges takes this document wherever
# the same contents are registered. For mergekit, put paths or names of its hub in their place.
"""
SILENT = {  # fields of a recipe that mergekit has no word for -> the value that asks for nothing
    "include": (),
    "exclude": (),
    "nan_policy": "fail",
    "tensors": "strict",
    "merge_buffers": True,
    "adapter_space": None,
    "transforms": (),
    "post_steps": (),
    "data": None,
    "onto": None,
}

Document = dict[str, Any]  # YAML
Faults = list[FieldProblem]


def write_merge(recipe: Recipe) -> str:
    """Return the document of a recipe.

    Raises: NotAcceptable naming every field that mergekit cannot say.
    """
    faults = [
        FieldProblem(f"/{name}", "mergekit has nothing of the kind")
        for name, silent in SILENT.items()
        if getattr(recipe, name) != silent
    ]
    known = _choose(recipe, faults)
    document: Document = {}
    if known is not None:
        is_copy = known.ours == PASSTHROUGH
        document = _write_passthrough(recipe, faults) if is_copy else _write_merge(recipe, known, faults)
        document = {"merge_method": known.theirs, **document, **_write_dtype(recipe), "amalgam": _beside(recipe)}
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise NotAcceptable(
            f"mergekit cannot say this recipe: {faults[0].pointer}: {faults[0].message}{more}. Take format=json.",
            errors=faults,
        )
    return HEAD + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120)


def _choose(recipe: Recipe, faults: Faults) -> KnownMethod | None:
    """Return the method of mergekit's that does what the recipe asks for; of several the nearest."""
    candidates = [known for known in KNOWN_METHODS if known.ours == recipe.method]
    if not candidates:
        faults.append(FieldProblem("/method", f"mergekit has no {recipe.method}"))
        return None
    nearest = min(candidates, key=lambda known: len(list(_other_than_fixed(recipe, known))))
    for name, value in _other_than_fixed(recipe, nearest):
        message = f"mergekit's {nearest.theirs} always has {nearest.fixed[name]!r} here, found {value!r}"
        faults.append(FieldProblem(f"/parameters/{name}", message))
    return nearest


def _other_than_fixed(recipe: Recipe, known: KnownMethod) -> Iterator[tuple[str, object]]:
    for name, fixed in known.fixed.items():
        values = [recipe.parameters.get(name, fixed), *(one.parameters.get(name, fixed) for one in recipe.overrides)]
        yield from ((name, value) for value in values if value != fixed)


# --- what is merged -----------------------------------------------------------------------------------------------


def _write_merge(recipe: Recipe, known: KnownMethod, faults: Faults) -> Document:
    refs = [_ref(model) for model in recipe.models]
    is_weighed = any(model.weight != 1 for model in recipe.models) or any(one.weights for one in recipe.overrides)
    if is_weighed and not known.has_weights:
        faults.append(FieldProblem("/models", f"mergekit's {known.theirs} uses no weights"))
    if len(set(refs)) < len(refs):
        faults.append(FieldProblem("/models", "mergekit refuses a model that is named twice"))
    document: Document = {}
    base = _base_ref(recipe, known, faults)
    if base is not None:
        document["base_model"] = base
    document["models"] = []
    for at, ref in enumerate(refs):
        own = {"weight": say(_weights(recipe, at, faults))} if known.has_weights else {}
        own |= dict(_own_parameters(recipe, known, at, faults))
        document["models"].append({"model": ref, **({"parameters": own} if own else {})})
    parameters = dict(_parameters(recipe, known, faults))
    return {**document, "parameters": parameters} if parameters else document


def _base_ref(recipe: Recipe, known: KnownMethod, faults: Faults) -> str | None:
    base = None if recipe.base_model is None else _ref(recipe.base_model)
    refs = [_ref(model) for model in recipe.models]
    if known.base == "input" and base is not None:
        faults.append(FieldProblem("/base_model", f"mergekit's {known.theirs} takes the base model for an input"))
    if known.base == "start":
        if base not in (None, refs[0]):
            message = f"mergekit's {known.theirs} starts from the base model, which is not models[0] here"
            faults.append(FieldProblem("/base_model", message))
        return refs[0]
    return base


def _weights(recipe: Recipe, at: int, faults: Faults) -> Chain:
    changes = [
        Change(f"/overrides/{index}", one.match, one.weights[at])
        for index, one in enumerate(recipe.overrides)
        if one.weights is not None and one.weights[at] is not None
    ]
    return chain_of(Change(f"/models/{at}/weight", "*", recipe.models[at].weight), changes, faults)


def _parameters(recipe: Recipe, known: KnownMethod, faults: Faults) -> Iterator[tuple[str, Any]]:
    sayable = {one.ours: one for one in known.parameters if isinstance(one, Renamed | Switched)}
    for name in recipe.parameters:
        if name not in sayable and name not in known.fixed and not (known.has_vectors and name == "scope"):
            faults.append(FieldProblem(f"/parameters/{name}", f"mergekit's {known.theirs} has no such parameter"))
    chains = {name: _chain(recipe, one, faults) for name, one in sayable.items() if name in recipe.parameters}
    if known.at_density_below_one is not None:
        _join_with_density(chains, known.at_density_below_one, faults)
    if known.has_vectors:
        yield from _vectors(recipe, faults)
    for name, chain in chains.items():
        yield sayable[name].theirs, say(chain)


def _own_parameters(recipe: Recipe, known: KnownMethod, at: int, faults: Faults) -> Iterator[tuple[str, Any]]:
    """Yield what a model has of its own, and what mergekit reads together with it."""
    sayable = [one for one in known.parameters if isinstance(one, Renamed) and one.is_per_model]
    own = [one for one in sayable if _has_own(recipe, at, one.ours)]
    if not own:
        return
    together = [DENSITY, known.at_density_below_one] if known.at_density_below_one is not None else []
    written = [one for one in sayable if one in own or one in together]
    chains = {one.ours: _own_chain(recipe, at, one, faults) for one in written}
    if known.at_density_below_one is not None:
        _join_with_density(chains, known.at_density_below_one, faults)
    yield from ((one.theirs, say(chains[one.ours])) for one in written)


def _has_own(recipe: Recipe, at: int, name: str) -> bool:
    overridden = [one.models[at] or {} for one in recipe.overrides if one.models is not None]
    return any(name in values for values in (recipe.models[at].parameters, *overridden))


def _own_chain(recipe: Recipe, at: int, parameter: Renamed, faults: Faults) -> Chain:
    """Return what holds for one model; mergekit takes all of it from the model as soon as that says anything."""
    name = parameter.ours
    if not _has_own(recipe, at, name):
        return _chain(recipe, parameter, faults)
    if name not in recipe.models[at].parameters and any(name in one.parameters for one in recipe.overrides):
        message = f"models[{at}] has its own {name} for some tensors only, beside overrides for all models"
        faults.append(FieldProblem("/overrides", f"{message}; mergekit takes either"))
    first = recipe.models[at].parameters.get(name, recipe.parameters[name])
    changes = [
        Change(f"/overrides/{index}/models/{at}/{name}", one.match, (one.models[at] or {})[name])
        for index, one in enumerate(recipe.overrides)
        if one.models is not None and name in (one.models[at] or {})
    ]
    chain = chain_of(Change(f"/models/{at}/parameters/{name}", "*", first), changes, faults)
    return [(filter_, _their_value(parameter, value, faults)) for filter_, value in chain]


def _chain(recipe: Recipe, parameter: Renamed | Switched, faults: Faults) -> Chain:
    name = parameter.ours
    changes = [
        Change(f"/overrides/{index}/parameters/{name}", one.match, one.parameters[name])
        for index, one in enumerate(recipe.overrides)
        if name in one.parameters
    ]
    chain = chain_of(Change(f"/parameters/{name}", "*", recipe.parameters[name]), changes, faults)
    return [(filter_, _their_value(parameter, value, faults)) for filter_, value in chain]


def _their_value(parameter: Renamed | Switched, value: Any, faults: Faults) -> Any:
    if isinstance(parameter, Renamed):
        return list(value) if isinstance(value, tuple) else value
    flags = [flag for flag, ours in parameter.when.items() if ours == value]
    if flags:
        return flags[0]
    faults.append(FieldProblem(f"/parameters/{parameter.ours}", f"mergekit has no {value!r} for it"))
    return None


def _join_with_density(chains: dict[str, Chain], other: Renamed, faults: Faults) -> None:
    """Say one value where density is below 1; where it is 1, mergekit has 0 and no other."""
    density, beside = chains[DENSITY.ours], chains[other.ours]
    if len(density) == 1 and not _reaches_one(density[0][1]):
        return
    values = [value for _, value in beside]
    if len(values) == 1:
        values *= len(density)
    elif filters_of(density) != filters_of(beside):
        values = []
    pairs = list(zip((kept for _, kept in density), values, strict=False))
    below = {value for kept, value in pairs if not _reaches_one(kept)}
    if not pairs or len(below) > 1 or any(value != 0 for kept, value in pairs if _reaches_one(kept)):
        message = f"mergekit has one {other.theirs} wherever density is below 1, and 0 where it is 1"
        faults.append(FieldProblem(f"/parameters/{other.ours}", message))
        return
    chains[other.ours] = [(None, next(iter(below), 0.0))]


def _vectors(recipe: Recipe, faults: Faults) -> Iterator[tuple[str, bool]]:
    if any("scope" in one.parameters for one in recipe.overrides):
        faults.append(FieldProblem("/overrides", "mergekit's nuslerp has one scope for all tensors"))
    scope = recipe.parameters["scope"]
    yield FLATTEN.theirs, scope == "tensor"
    yield ROW_WISE.theirs, scope == "column"


def _reaches_one(density: Any) -> bool:
    return max(density) >= 1 if isinstance(density, (list, tuple)) else bool(density >= 1)


# --- what is copied -----------------------------------------------------------------------------------------------


def _write_passthrough(recipe: Recipe, faults: Faults) -> Document:
    refs = [_ref(model) for model in recipe.models]
    document: Document = {"base_model": _ref(recipe.base_model)} if recipe.base_model is not None else {}
    slices = recipe.parameters.get("slices")
    if isinstance(slices, list | tuple) and slices:
        document["slices"] = [
            _write_slice(one, refs, f"/parameters/slices/{at}", faults) for at, one in enumerate(slices)
        ]
    else:
        if len(refs) > 1:
            faults.append(
                FieldProblem("/models/1", "mergekit's passthrough copies one model where there are no slices")
            )
        if document:
            faults.append(FieldProblem("/base_model", "mergekit's passthrough takes one only beside slices"))
        document["models"] = [{"model": refs[0]}]
    scale = _write_scaling(recipe.parameters.get("scaling"), "/parameters/scaling", faults)
    return {**document, "parameters": {SCALE: scale}} if scale is not None else document


def _write_slice(one: Any, refs: Sequence[str], pointer: str, faults: Faults) -> Document:
    source = one["sources"][0]
    document: Document = {"model": refs[source["model"]], "layer_range": list(source["layer_range"])}
    scale = _write_scaling(source.get("scaling"), f"{pointer}/sources/0/scaling", faults)
    return {"sources": [{**document, "parameters": {SCALE: scale}} if scale is not None else document]}


def _write_scaling(scaling: Any, pointer: str, faults: Faults) -> Any:
    if not scaling:
        return None
    chain: Chain = []
    for at, one in reversed(list(enumerate(scaling))):
        text = None if one["match"] == "*" else text_of(one["match"])
        if text is None and one["match"] != "*":
            message = f"{one['match']!r} is no filter of mergekit's: expected a text between two stars"
            faults.append(FieldProblem(f"{pointer}/{at}", message))
        chain.append((text, one["factor"]))
        if text is None:
            break
    return say(chain) if len(chain) > 1 or chain[0][0] is None else [{"filter": chain[0][0], "value": chain[0][1]}]


# --- the rest -----------------------------------------------------------------------------------------------------


def _write_dtype(recipe: Recipe) -> Document:
    """Ask mergekit to compute in float32, as we do."""
    return {} if recipe.output_dtype is None else {"dtype": "float32", "out_dtype": recipe.output_dtype}


def _beside(recipe: Recipe) -> Document:
    beside: Document = {"output": {"shard_bytes": recipe.shard_bytes}}
    if recipe.seed:
        beside["seed"] = recipe.seed
    return {**beside, "method_version": recipe.method_version, "engine_version": recipe.engine_version}


def _ref(pinned: PinnedCheckpoint) -> str:
    return f"sha256:{pinned.content_digest}"
