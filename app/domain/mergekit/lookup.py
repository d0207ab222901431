"""What a mergekit document sets, looked up as mergekit does: a model's own settings first, then those of all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from app.domain.errors import near_match
from app.domain.mergekit.documents import Node
from app.domain.mergekit.fields import Faults, Input, Settings
from app.domain.mergekit.methods import Kind, KnownMethod, Parameter
from app.domain.mergekit.settings import Condition, Setting, read_setting, resolve

WEIGHT = "weight"
NORMALIZE = "normalize"
ONE: Setting = (Condition(None, 1.0),)
NO: Setting = (Condition(None, value=False),)


@dataclass(frozen=True)
class Lookup:
    """The settings of the merged models."""

    shared: Settings
    models: Sequence[Input]
    faults: Faults
    at: int | None = None  # as this model sees it; None: as all do

    def weights(self) -> list[Setting]:
        """Return each model's weight; mergekit has no default."""
        return [self._find(WEIGHT, "number", default=None, model=model) or ONE for model in self.models]

    def normalize(self) -> Setting:
        """Return whether sums are divided by the sum of the weights."""
        return self._find(NORMALIZE, "flag", default=False) or NO

    def of(self, parameter: Parameter) -> Setting | None:
        """Return a parameter's value: of one model; or what all models share, else what is said of all of them.

        None where there is a fault.
        """
        if not parameter.is_per_model or not self.models:
            return self._of_model(parameter, None)
        if self.at is not None:
            return self._of_model(parameter, self.models[self.at])
        found = [self._of_model(parameter, model) for model in self.models]
        if any(one is None for one in found):
            return None
        contents = [_content(one) for one in found if one is not None]
        return found[0] if contents.count(contents[0]) == len(contents) else self._of_model(parameter, None)

    def _of_model(self, parameter: Parameter, model: Input | None) -> Setting | None:
        return self._find(parameter.theirs, parameter.kind, default=parameter.default, model=model)

    def _find(self, name: str, kind: Kind, *, default: JsonValue, model: Input | None = None) -> Setting | None:
        sources = [*(model.parameters if model is not None else ()), *self.shared]
        given = [(f"{pointer}/{name}", _get(node, name)) for pointer, node in sources]
        settings = [read_setting(node, pointer, kind, self.faults) for pointer, node in given if node is not None]
        found = resolve(settings, default)
        if found is None:
            self._note_missing(name, settings, model)
        return found

    def _note_missing(self, name: str, settings: Sequence[Setting], model: Input | None) -> None:
        conditions = [condition for setting in settings for condition in setting]
        if conditions and conditions[-1].place is not None:
            pointer, line = conditions[-1].place
            message = f"{name} has no value for the tensors that no filter names; add {{value: …}} at the end"
            self.faults.add(pointer, Node(None, line), message)
        elif not settings:  # else what was given could not be read, and that is noted
            pointer, line = (model.pointer, model.line) if model is not None else (f"/parameters/{name}", 1)
            of_model = f" of {model.ref!r}" if model is not None else ""
            self.faults.add(
                pointer, Node(None, line), f"the {name}{of_model} is missing; mergekit has no default for it"
            )


def check_names(
    known: KnownMethod, base: Input | None, inputs: Sequence[Input], shared: Settings, faults: Faults
) -> None:
    """Refuse settings that mergekit would not look at."""
    own = {one.theirs: one.is_per_model for one in known.parameters}
    own |= {WEIGHT: True} if known.has_weights else {}
    own |= {NORMALIZE: False} if known.divides else {}
    for pointer, node in shared:
        _check_keys(pointer, node, list(own), f"{known.theirs} has no such parameter", faults)
    per_model = [name for name, is_per_model in own.items() if is_per_model]
    for one in inputs:
        is_origin = base is not None and one.ref == base.ref and known.base in ("required", "optional")
        why = "takes none for the base model" if is_origin else "takes no such parameter of one model"
        for pointer, node in one.parameters:
            _check_keys(pointer, node, [] if is_origin else per_model, f"{known.theirs} {why}", faults)


def _check_keys(pointer: str, node: Node, allowed: Sequence[str], why: str, faults: Faults) -> None:
    if not isinstance(node.value, dict):
        faults.add(pointer, node, "expected a mapping of parameters")
        return
    for name, item in node.value.items():
        if name not in allowed and item.value is not None:
            message = f"mergekit would pass over {name!r}: {why}; known here: {', '.join(allowed) or 'none'}"
            faults.add(f"{pointer}/{name}", item, message, near_match(name, allowed))


def _get(node: Node, name: str) -> Node | None:
    found = node.value.get(name) if isinstance(node.value, Mapping) else None
    return None if found is None or found.value is None else found


def _content(setting: Setting) -> list[tuple[str | None, object]]:
    return [(condition.filter, condition.value) for condition in setting]
