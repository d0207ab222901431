"""Whether a method can merge checkpoints of these kinds, and in which space it merges adapters."""

from collections.abc import Sequence

from app.domain.adapters import AdapterSpace
from app.domain.catalog import MethodCard
from app.domain.checkpoints import CheckpointKind
from app.domain.errors import FieldProblem, Invalid


def check_kinds(
    card: MethodCard,
    space: AdapterSpace | None,
    *,
    base: CheckpointKind | None,
    models: Sequence[CheckpointKind],
) -> AdapterSpace | None:
    """Return the space in which adapters are merged; None where no model is one, or the parameters say it.

    space: the one asked for. base: None where no base model is named.
    Raises: Invalid naming every model of a kind that the method does not take, a missing base, or a space it has not.
    """
    faults = _model_faults(card, models)
    if base is CheckpointKind.ADAPTER:  # of a multitask checkpoint the shared model counts
        faults.append(FieldProblem("/base_model", f"the base model is of kind {base}; expected a dense checkpoint"))
    has_adapters = CheckpointKind.ADAPTER in models
    if has_adapters and base is None:
        faults.append(FieldProblem("/base_model", "adapters lie on a base model; name the one they were trained on"))
    faults += _space_faults(card, space, models)
    if faults:
        raise Invalid(f"{faults[0].pointer}: {faults[0].message}.", errors=faults)
    if not has_adapters:
        return None
    is_said_by_parameters = card.produces == "adapter" and len(card.adapter_spaces) > 1
    return space or (None if is_said_by_parameters else card.adapter_spaces[0])


def _model_faults(card: MethodCard, models: Sequence[CheckpointKind]) -> list[FieldProblem]:
    taken = [CheckpointKind.DENSE] if card.accepts_dense else []
    taken += [CheckpointKind.ADAPTER] if card.accepts_adapters else []
    return [
        FieldProblem(
            f"/models/{index}/checkpoint",
            f"models[{index}] is of kind {kind}; {card.name} merges checkpoints of kind {' or '.join(taken)}",
        )
        for index, kind in enumerate(models)
        if kind not in taken
    ]


def _space_faults(card: MethodCard, space: AdapterSpace | None, models: Sequence[CheckpointKind]) -> list[FieldProblem]:
    if space is None:
        return []
    if CheckpointKind.ADAPTER not in models:
        return [FieldProblem("/adapter_space", "no model is an adapter; leave it out")]
    if card.produces == "adapter" and len(card.adapter_spaces) > 1:
        return [FieldProblem("/adapter_space", f"the parameters of {card.name} say the space; leave it out")]
    if space not in card.adapter_spaces:
        known = ", ".join(card.adapter_spaces)
        return [
            FieldProblem("/adapter_space", f"{card.name} merges adapters in {known or 'no space'}, not in {space!r}")
        ]
    dense = [index for index, kind in enumerate(models) if kind is not CheckpointKind.ADAPTER]
    if space != "delta" and dense:
        pointer = f"/models/{dense[0]}/checkpoint"
        return [
            FieldProblem(
                pointer, f"in the space {space!r} every model must be an adapter; use 'delta' beside dense ones"
            )
        ]
    return []
