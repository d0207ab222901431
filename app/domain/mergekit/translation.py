"""Models and settings of a mergekit document, put into our words: who is the base, which weights, which overrides."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import fsum
from typing import Any

from pydantic import JsonValue

from app.domain.mergekit.documents import Node
from app.domain.mergekit.fields import Faults, Input, Settings
from app.domain.mergekit.lookup import NORMALIZE, ONE, Lookup, check_names
from app.domain.mergekit.methods import (
    DENSITY,
    EPSILON,
    FLATTEN,
    LAMBDA,
    ROW_WISE,
    Ineffective,
    KnownMethod,
    OneValue,
    Parameter,
    Renamed,
    Switched,
)
from app.domain.mergekit.settings import Assign, Facet, One, Override, Place, Setting, Value, plain_value, say

ALMOST_NO_WEIGHT = 1e-8  # mergekit does not divide by a sum of weights below it

Said = tuple[Setting, Assign]  # a setting of theirs, and what a value of it is in our parameters


@dataclass
class Translated:
    """Fields of a request, and where the document says them."""

    request: dict[str, Any] = field(default_factory=dict)  # JSON
    origins: dict[str, Place] = field(default_factory=dict)


def translate(
    known: KnownMethod, base: Input | None, inputs: Sequence[Input], shared: Settings, faults: Faults
) -> Translated:
    """Return the models, parameters and overrides of a request; faults are noted."""
    check_names(known, base, inputs, shared, faults)
    models, origin = _cast(known, base, inputs)
    lookup = Lookup(shared, models, faults)
    weights = lookup.weights() if known.has_weights else [ONE] * len(models)
    done = Translated()
    if origin is not None:
        done.request["base_model"] = origin.ref
        done.origins["/base_model"] = (origin.pointer, origin.line)
    settings = list(_settings(known, lookup, weights, faults))
    chains = [*_add_models(models, weights, done), *_add_parameters(known, settings, done)]
    chains += [chain for at in range(len(models)) for chain in _add_own(known, replace(lookup, at=at), settings, done)]
    overrides = _join(chains)
    if overrides:
        done.request["overrides"] = [_write_override(one, len(models)) for one in overrides]
    done.origins |= {f"/overrides/{at}": one.place for at, one in enumerate(overrides) if one.place is not None}
    return done


def _cast(known: KnownMethod, base: Input | None, inputs: Sequence[Input]) -> tuple[list[Input], Input | None]:
    """Return our models in our order, and our base model."""
    if base is None:
        return list(inputs), None
    others = [one for one in inputs if one.ref != base.ref]
    named = next((one for one in inputs if one.ref == base.ref), base)
    if known.base == "start":
        return [named, *others], None
    if known.base == "input":
        return (list(inputs) if named is not base else [*inputs, base]), None
    return others, base


# --- models and weights -------------------------------------------------------------------------------------------


def _add_models(models: Sequence[Input], weights: Sequence[Setting], done: Translated) -> list[list[Override]]:
    """Add the models with their weights; return the overrides of each weight, by the model's index."""
    chains: list[list[Override]] = []
    written: list[dict[str, JsonValue]] = []
    for at, (model, weight) in enumerate(zip(models, weights, strict=True)):
        values, overrides = say(weight, partial(_assign_weight, at))
        written.append({"checkpoint": model.ref, "weight": values[at]})
        chains.append(overrides)
        done.origins[f"/models/{at}"] = (model.pointer, model.line)
        if weight[-1].place is not None:
            done.origins[f"/models/{at}/weight"] = weight[-1].place
    done.request["models"] = written
    return chains


def _assign_weight(at: int, value: One) -> Mapping[Facet, JsonValue]:
    return {at: value}


# --- overrides ----------------------------------------------------------------------------------------------------


def _join(chains: Sequence[Sequence[Override]]) -> list[Override]:
    """Return one list of overrides; those of one glob are one where the order within each chain allows it."""
    joined: list[Override] = []
    for chain in chains:
        after = 0
        for one in chain:
            same = [at for at in range(after, len(joined)) if joined[at].match == one.match]
            if same:
                joined[same[0]] = replace(joined[same[0]], assigned={**joined[same[0]].assigned, **one.assigned})
            else:
                joined.append(one)
            after = same[0] + 1 if same else len(joined)
    return joined


def _write_override(one: Override, n_models: int) -> dict[str, Any]:
    written: dict[str, Any] = {"match": one.match}
    parameters = {facet: value for facet, value in one.assigned.items() if isinstance(facet, str)}
    if parameters:
        written["parameters"] = parameters
    if any(isinstance(facet, int) for facet in one.assigned):
        written["weights"] = [one.assigned.get(at) for at in range(n_models)]
    own = [(*facet, value) for facet, value in one.assigned.items() if isinstance(facet, tuple)]
    if own:
        of_models = [{name: value for model, name, value in own if model == at} for at in range(n_models)]
        written["models"] = [values or None for values in of_models]
    return written


# --- parameters ---------------------------------------------------------------------------------------------------


def _add_parameters(known: KnownMethod, settings: Sequence[Said], done: Translated) -> list[list[Override]]:
    """Add the parameters; return the overrides of each."""
    parameters: dict[str, JsonValue] = dict(known.fixed)
    chains: list[list[Override]] = []
    for setting, assign in settings:
        values, overrides = say(setting, assign)
        named = {str(name): value for name, value in values.items()}
        parameters |= named
        place = setting[-1].place
        if place is not None:
            done.origins |= {f"/parameters/{name}": place for name in named}
        chains.append(overrides)
    done.request["parameters"] = parameters
    return chains


def _add_own(known: KnownMethod, lookup: Lookup, shared: Sequence[Said], done: Translated) -> list[list[Override]]:
    """Add what one model has of its own; return the overrides of each parameter."""
    chains: list[list[Override]] = []
    of_all = {name: series for said in shared for name, series in _series(said).items()}
    for setting, assign in _settings_per_model(known, lookup):
        values, overrides = say(setting, assign)
        for name, series in _series((setting, assign)).items():
            if series == of_all.get(name) or lookup.at is None:
                continue
            own = done.request["models"][lookup.at].setdefault("parameters", {})
            own[name] = values[name]
            if setting[-1].place is not None:
                done.origins[f"/models/{lookup.at}/parameters/{name}"] = setting[-1].place
            chains.append(
                [
                    Override(one.match, {(lookup.at, name): one.assigned[name]}, one.place)
                    for one in overrides
                    if name in one.assigned
                ]
            )
    return chains


def _series(said: Said) -> dict[str, list[JsonValue]]:
    """Return, of each parameter that is set, its value and its overrides, to be compared."""
    values, overrides = say(*said)
    return {
        name: [values[name], *([one.match, one.assigned[name]] for one in overrides if name in one.assigned)]
        for name in values
        if isinstance(name, str)
    }


def _settings_per_model(known: KnownMethod, lookup: Lookup) -> Iterator[Said]:
    joined = known.at_density_below_one
    if joined is not None:
        yield from _beside_density(lookup, joined, lookup.faults)
    for parameter in known.parameters:
        if not parameter.is_per_model or (joined is not None and parameter in (DENSITY, joined)):
            continue
        setting = lookup.of(parameter)
        if setting is not None:
            yield setting, _assign(parameter, 1.0)


def _settings(known: KnownMethod, lookup: Lookup, weights: Sequence[Setting], faults: Faults) -> Iterator[Said]:
    divisor = _divisor(lookup, weights, faults) if known.divides else 1.0
    joined: list[Parameter] = []
    if known.at_density_below_one is not None:
        joined = [DENSITY, known.at_density_below_one]
        yield from _beside_density(lookup, known.at_density_below_one, faults)
    if known.has_vectors:
        yield from _vectors(lookup, faults)
    for parameter in known.parameters:
        setting = None if parameter in joined else lookup.of(parameter)
        if setting is None or isinstance(parameter, Ineffective):
            continue
        if isinstance(parameter, OneValue):
            _check_one_value(parameter, setting, faults)
        else:
            yield setting, _assign(parameter, divisor if parameter is LAMBDA else 1.0)


def _assign(parameter: Parameter, divisor: float) -> Assign:
    def assign(value: One) -> Mapping[Facet, JsonValue]:
        if isinstance(parameter, Switched):
            return {parameter.ours: parameter.when[bool(value)]}
        if isinstance(parameter, Ineffective | OneValue):
            return {}
        return {parameter.ours: value if divisor == 1.0 else value / divisor}

    return assign


def _check_one_value(parameter: OneValue, setting: Setting, faults: Faults) -> None:
    for condition in setting:
        if condition.value != parameter.default and condition.place is not None:
            pointer, line = condition.place
            found = str(condition.value).lower()
            faults.add(pointer, Node(None, line), f"{parameter.theirs}: {found} cannot be said: {parameter.reason}")


def _divisor(lookup: Lookup, weights: Sequence[Setting], faults: Faults) -> float:
    """Return what mergekit's `normalize` divides the sum of task vectors by; here lambda is divided."""
    setting = lookup.normalize()
    if plain_value(setting) is False:
        return 1.0
    plain = [plain_value(weight) for weight in weights]
    if plain_value(setting) is None or any(weight is None for weight in plain):
        pointer, line = setting[0].place or (f"/parameters/{NORMALIZE}", 1)
        message = "normalize divides by the sum of the weights, which must be plain numbers for that"
        faults.add(pointer, Node(None, line), f"{message}; set it to false, or divide lambda yourself")
        return 1.0
    total = fsum(float(weight) for weight in plain if weight is not None)
    return total if abs(total) >= ALMOST_NO_WEIGHT else 1.0


def _vectors(lookup: Lookup, faults: Faults) -> Iterator[Said]:
    """Yield what nuslerp takes for a vector; mergekit's `row_wise` means the first axis."""
    flatten, row_wise = lookup.of(FLATTEN), lookup.of(ROW_WISE)
    if flatten is None or row_wise is None:
        return
    is_flat, is_row_wise = plain_value(flatten), plain_value(row_wise)
    if is_flat is None or is_row_wise is None:
        pointer, line = flatten[0].place or row_wise[0].place or ("/parameters", 1)
        faults.add(pointer, Node(None, line), "nuslerp_flatten and nuslerp_row_wise must be the same for all tensors")
        return
    scope = "tensor" if is_flat else "column" if is_row_wise else "row"
    yield (flatten if is_flat else row_wise), lambda _: {"scope": scope}


def _beside_density(lookup: Lookup, other: Renamed, faults: Faults) -> Iterator[Said]:
    """Yield density and the parameter that mergekit does not look at where density is 1: there it is 0."""
    density, beside = lookup.of(DENSITY), lookup.of(other)
    if density is None or beside is None:
        return
    _check_density(density, beside, other, faults)
    kept, plain = plain_value(density), plain_value(beside)
    if plain is not None:
        yield density, lambda value: {DENSITY.ours: value, other.ours: 0.0 if value >= 1 else plain}
    elif kept is not None:
        yield density, lambda value: {DENSITY.ours: value}
        yield beside, lambda value: {other.ours: 0.0 if kept >= 1 else value}
    else:
        pointer, line = beside[0].place or (f"/parameters/{other.theirs}", 1)
        message = f"density and {other.theirs} both differ between tensors; make one of them a number"
        faults.add(pointer, Node(None, line), message)


def _check_density(density: Setting, beside: Setting, other: Renamed, faults: Faults) -> None:
    """Refuse what mergekit refuses, or does in another way than it is asked to."""
    most = max(value for condition in beside for value in _values(condition.value))
    for condition in density:
        values = _values(condition.value)
        beyond = [value for value in values if value + most > 1 and (value < 1 or len(values) > 1)]
        beyond += [
            value for value in values if other is EPSILON and value < 1 and not 0 < value - most < value + most < 1
        ]
        if beyond:
            pointer, line = condition.place or ("/parameters/density", 1)
            message = f"density {beyond[0]:g} leaves no room for {other.theirs} {most:g} within 0 and 1"
            faults.add(pointer, Node(None, line), f"{message}; lower {other.theirs}")
            return


def _values(value: Value) -> list[float]:
    return value if isinstance(value, list) else [value]
