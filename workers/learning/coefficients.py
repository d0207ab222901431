"""Coefficients of task vectors, one per model for each tensor: the value, its file, and how a method reads it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, JsonValue

from app.domain.checkpoints import FileEntry
from app.domain.coefficients import OTHERS
from app.domain.errors import InvalidParameters, near_match
from workers.checkpoints.companions import COEFFICIENTS_FILE, write_file

FORMAT = "amalgam-coefficients"
FORMAT_VERSION = 1

Coefficients = Annotated[
    dict[str, tuple[float, ...]] | None,
    Field(
        description="Learned before, as `coefficients` in an artifact's coefficients.json: one number per model for "
        "each tensor; `*` stands for all others. Given, nothing is learned.",
    ),
]


@dataclass(frozen=True)
class LearnedCoefficients:
    """What a learner found; satisfies learning_contract.Learned."""

    of_tensor: Mapping[str, tuple[float, ...]]  # tensor, or `*` for all others -> one per model
    told: Mapping[str, JsonValue] = field(default_factory=dict)  # how it was learned

    def report(self) -> dict[str, JsonValue]:
        """Return the mean coefficient of each model, and how they were learned."""
        learned = [values for name, values in self.of_tensor.items() if name != OTHERS] or [*self.of_tensor.values()]
        means: list[JsonValue] = [sum(of_model) / len(learned) for of_model in zip(*learned, strict=True)]
        return {"file": COEFFICIENTS_FILE, "n_tensors": len(learned), "mean_coefficients": means, **self.told}

    def write(self, folder: Path) -> Sequence[FileEntry]:
        """Write `coefficients.json`."""
        document = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "coefficients": {name: list(values) for name, values in sorted(self.of_tensor.items())},
        }
        text = json.dumps(document, indent=2, ensure_ascii=False)
        return (write_file(folder, COEFFICIENTS_FILE, text.encode() + b"\n"),)


def coefficients_of(tensor: str, given: Mapping[str, tuple[float, ...]]) -> tuple[float, ...]:
    """Return the coefficients of a tensor. Raises: InvalidParameters where there are none."""
    found = given.get(tensor, given.get(OTHERS))
    if found is None:
        near = near_match(tensor, given)
        hint = f" Did you mean it by {near!r}?" if near else ""
        raise InvalidParameters(
            f"coefficients say nothing of tensor {tensor!r}, and have no '{OTHERS}' for all others.{hint}"
        )
    return found
