"""Coefficients per tensor and model, as a request gives them back: `{"tensor": [one per model], "*": […]}`."""

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from app.domain.errors import FieldProblem, near_match

COEFFICIENTS = "coefficients"  # the parameter
OTHERS = "*"  # stands for all tensors that are not named


def coefficient_faults(
    coefficients: Mapping[str, JsonValue], merged: Sequence[str], n_models: int, *, pointer: str
) -> list[FieldProblem]:
    """Return what keeps coefficients from being those of these tensors and this many models."""
    faults = [
        FieldProblem(f"{pointer}/{name}", f"found {len(values)} numbers, expected one for each of {n_models} models")
        for name, values in coefficients.items()
        if isinstance(values, list) and len(values) != n_models
    ]
    known = {*merged, OTHERS}
    faults += [
        FieldProblem(f"{pointer}/{name}", f"no tensor {name!r} is merged", near_match(name, known))
        for name in coefficients
        if name not in known
    ]
    missing = [] if OTHERS in coefficients else [name for name in merged if name not in coefficients]
    if missing:
        message = (
            f"nothing is said of {len(missing)} tensors, as {missing[0]!r}; name them, or all others as '{OTHERS}'"
        )
        faults.append(FieldProblem(pointer, message))
    return faults
