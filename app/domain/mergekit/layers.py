"""mergekit's `slices`: runs of layers of models, one after the other; or the long way to say `models`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from app.domain.errors import near_match
from app.domain.mergekit.documents import Node
from app.domain.mergekit.fields import Faults, Input, Settings, read_input, read_list, read_mapping, read_parameters
from app.domain.mergekit.settings import Condition, glob_of, read_setting
from app.domain.mergekit.translation import Translated

PASSTHROUGH = "passthrough"
SCALE = "scale"
SLICE_KEYS = ("sources", "parameters")
SOURCE_KEYS = ("model", "layer_range", "parameters")
NOT_READ = {
    "base_model": "the base model is the same in every slice; name it once, at the top",
    "residual_weight": "mergekit does nothing with it",
}


@dataclass(frozen=True)
class Source:
    """A run of layers of a model."""

    model: Input
    begin: int
    end: int
    pointer: str
    line: int


def read_models(node: Node, faults: Faults, prefix: str = "") -> list[Input]:
    """Return the models of the key `models`. prefix: pointer of the mapping that has it."""
    inputs: list[Input] = []
    for pointer, item in read_list(node, f"{prefix}/models", "{model: …, parameters: …}", faults):
        mapping = read_mapping(item, pointer, ("model", "parameters"), faults)
        found = read_input(mapping, pointer, item, faults)
        if found is not None:
            inputs.append(replace(found, parameters=read_parameters(mapping, pointer)))
    return inputs


def read_whole_models(node: Node, faults: Faults, prefix: str = "") -> tuple[list[Input], int | None]:
    """Return the models of one slice over all layers, and how many layers that must be."""
    slices = _read_slices(node, faults, prefix)
    if len(slices) > 1:
        line = slices[1][0].line if slices[1] else node.line
        message = "several slices are read for passthrough only; merge whole models"
        faults.add(f"{prefix}/slices/1", Node(None, line), message)
        return [], None
    sources = slices[0] if slices else []
    for source in sources:
        if source.begin != 0 or source.end != sources[0].end:
            message = "expected the same layers of every model, from 0; parts of models are for passthrough only"
            faults.add(source.pointer, Node(None, source.line), message)
    return [source.model for source in sources], sources[0].end if sources else None


def read_passthrough(
    top: Mapping[str, Node], base: Input | None, shared: Settings, faults: Faults, prefix: str = ""
) -> Translated:
    """Return the models, slices and scalings of a passthrough. prefix: pointer of the mapping that has them."""
    done = Translated()
    if base is not None:
        done.request["base_model"] = base.ref
        done.origins["/base_model"] = (base.pointer, base.line)
    if "slices" in top:
        models = _add_slices(_read_slices(top["slices"], faults, prefix), done, faults)
        settings = shared
    else:
        models = read_models(top["models"], faults, prefix)
        settings = (*(models[0].parameters if models else ()), *shared)
        if len(models) > 1:
            message = "passthrough copies one model; say slices for several"
            faults.add(f"{prefix}/models/1", Node(None, models[1].line), message)
    done.request["models"] = [{"checkpoint": model.ref} for model in models]
    done.origins |= {f"/models/{at}": (model.pointer, model.line) for at, model in enumerate(models)}
    scaling = _read_scaling(settings, faults)
    done.request.setdefault("parameters", {}).update({"scaling": scaling} if scaling else {})
    return done


def _add_slices(slices: list[list[Source]], done: Translated, faults: Faults) -> list[Input]:
    """Add the slices; return the models that they name, each once."""
    models: dict[str, Input] = {}
    written: list[dict[str, Any]] = []
    for at, sources in enumerate(slices):
        if len(sources) > 1:
            faults.add(sources[1].pointer, Node(None, sources[1].line), "passthrough takes one source per slice")
        for source in sources[:1]:
            model = models.setdefault(source.model.ref, source.model)
            one: dict[str, Any] = {"model": list(models).index(model.ref), "layer_range": [source.begin, source.end]}
            scaling = _read_scaling(source.model.parameters, faults)
            written.append({"sources": [{**one, "scaling": scaling} if scaling else one]})
            done.origins[f"/parameters/slices/{at}"] = (source.pointer, source.line)
    done.request["parameters"] = {"slices": written}
    return list(models.values())


def _read_slices(node: Node, faults: Faults, prefix: str) -> list[list[Source]]:
    slices: list[list[Source]] = []
    for pointer, item in read_list(node, f"{prefix}/slices", "{sources: […]}", faults):
        mapping = read_mapping(item, pointer, SLICE_KEYS, faults, not_read=NOT_READ)
        if "sources" not in mapping:
            faults.add(pointer, item, "sources is missing; name models and their layers")
            continue
        below = read_list(mapping["sources"], f"{pointer}/sources", "{model: …, layer_range: [0, n]}", faults)
        found = [_read_source(one, place, read_parameters(mapping, pointer), faults) for place, one in below]
        slices.append([source for source in found if source is not None])
    return slices


def _read_source(node: Node, pointer: str, of_slice: Settings, faults: Faults) -> Source | None:
    mapping = read_mapping(node, pointer, SOURCE_KEYS, faults)
    model = read_input(mapping, pointer, node, faults)
    begin, end = _read_range(mapping.get("layer_range", Node(None, node.line)), f"{pointer}/layer_range", faults)
    if model is None:
        return None
    parameters = (*read_parameters(mapping, pointer), *of_slice)
    return Source(replace(model, parameters=parameters), begin, end, f"{pointer}/layer_range", node.line)


def _read_range(node: Node, pointer: str, faults: Faults) -> tuple[int, int]:
    bounds = [item.value for item in node.value] if isinstance(node.value, list) else []
    match bounds:
        case [int(begin), int(end)] if 0 <= begin < end:
            return begin, end
    faults.add(pointer, node, "expected layer_range: [first, behind the last], whole numbers, as in [0, 12]")
    return 0, 1


def _read_scaling(settings: Settings, faults: Faults) -> list[dict[str, Any]]:
    """Return the factors by glob, the last of which wins."""
    conditions: list[Condition] = []
    for pointer, node in settings:
        for name, item in node.value.items() if isinstance(node.value, dict) else ():
            if name == SCALE and item.value is not None:
                conditions += read_setting(item, f"{pointer}/{name}", "number", faults)
            elif item.value is not None:
                message = f"mergekit would pass over {name!r}: passthrough has only {SCALE}"
                faults.add(f"{pointer}/{name}", item, message, near_match(name, (SCALE,)))
    reaching = [at for at, condition in enumerate(conditions) if condition.filter is None]
    kept = conditions[: reaching[0] + 1] if reaching else conditions
    for condition in kept:
        if isinstance(condition.value, list) and condition.place is not None:
            faults.add(condition.place[0], Node(None, condition.place[1]), "expected one number, found a list")
    return [
        {"match": "*" if one.filter is None else glob_of(one.filter), "factor": one.value} for one in reversed(kept)
    ]
