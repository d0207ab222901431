"""What a merge tells of groups of tensors: what holds for each, and what was found of each."""

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from app.domain.tensor_parameters import TensorGroup

MAX_REPORTED = 1000  # names of tensors in one group


def join_reports(groups: Sequence[Mapping[str, JsonValue]]) -> dict[str, JsonValue]:
    """Return what each group tells under one name: of several groups a list."""
    joined: dict[str, JsonValue] = {}
    for name in sorted({name for group in groups for name in group}):
        values = [group[name] for group in groups if name in group]
        joined[name] = values[0] if len(groups) == 1 else values
    return joined


def report_groups(groups: Sequence[TensorGroup]) -> dict[str, JsonValue]:
    """Return what holds for each group of tensors, where there are several, or for each model, where they differ."""
    if len(groups) <= 1 and not any(group.of_models for group in groups):
        return {}
    told: list[JsonValue] = [
        {
            "parameters": group.parameters,
            "weights": list(group.weights),
            **({"models": list(group.of_models)} if group.of_models else {}),
            "n_tensors": len(group.names),
            "tensors": list(group.names[:MAX_REPORTED]),
        }
        for group in groups
    ]
    return {"groups": told}
