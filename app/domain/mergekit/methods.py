"""What mergekit 0.1.5 calls the methods that both know, and what its parameters and defaults are in our words.

A table: reading.py walks it one way, writing.py the other. `fixed` are our parameters that say what mergekit does
without being asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

Kind = Literal["number", "integer", "flag"]
# What `base_model` is to the method: the origin of task vectors, one of the inputs, or the model that is walked from.
BaseRole = Literal["required", "optional", "input", "start"]


@dataclass(frozen=True)
class Renamed:
    """A parameter that has another name here, or the same."""

    theirs: str
    ours: str
    default: JsonValue  # mergekit's; None: it must be given
    kind: Kind = "number"
    is_per_model: bool = False  # mergekit takes one value per model; here all models share one


@dataclass(frozen=True)
class Switched:
    """A flag that is a choice here."""

    theirs: str
    ours: str
    when: Mapping[bool, JsonValue]
    default: bool
    kind: Kind = "flag"
    is_per_model: bool = False


@dataclass(frozen=True)
class OneValue:
    """A parameter of which only one value can be said here."""

    theirs: str
    default: bool
    reason: str  # why no other
    kind: Kind = "flag"
    is_per_model: bool = False


@dataclass(frozen=True)
class Ineffective:
    """A parameter without influence on the result: read and left out."""

    theirs: str
    default: JsonValue
    kind: Kind = "flag"
    is_per_model: bool = False


Parameter = Renamed | Switched | OneValue | Ineffective


@dataclass(frozen=True)
class KnownMethod:
    """A method of mergekit's."""

    theirs: str
    ours: str
    base: BaseRole
    has_weights: bool = False
    parameters: tuple[Parameter, ...] = ()
    fixed: Mapping[str, JsonValue] = field(default_factory=dict)
    divides: bool = False  # `normalize` divides the sum of task vectors by the sum of all weights
    has_outliers: bool = False  # at density 1 mergekit drops no outliers, whatever `gamma` says


LAMBDA = Renamed("lambda", "scaling_coefficient", 1.0)
DENSITY = Renamed("density", "density", 1.0, is_per_model=True)
GAMMA = Renamed("gamma", "outlier_fraction", 0.01, is_per_model=True)
EPSILON = Renamed("epsilon", "epsilon", 0.15, is_per_model=True)
RESCALE = Switched("rescale", "rescale", {True: "l1", False: "none"}, default=True)
NO_RESCALE = OneValue("rescale", default=False, reason="Amalgam does not rescale what is kept by magnitude")
INT8_MASK = Ineffective("int8_mask", default=False)  # the precision of mergekit's masks of signs
MEAN_OR_SUM: Mapping[bool, JsonValue] = {True: "mean", False: "sum"}
SUM_ONLY = "Amalgam sums what agrees here, and does not divide by the weights"

KNOWN_METHODS: tuple[KnownMethod, ...] = (
    KnownMethod(
        "linear", "average", "input", has_weights=True,
        parameters=(Renamed("normalize", "normalize", default=True, kind="flag"),),
    ),
    KnownMethod(
        "task_arithmetic", "task_arithmetic", "required", has_weights=True,
        parameters=(LAMBDA, INT8_MASK), divides=True,
    ),
    KnownMethod(
        "ties", "ties", "required", has_weights=True,
        parameters=(
            LAMBDA, DENSITY, INT8_MASK, NO_RESCALE,
            Switched("normalize", "reduce", MEAN_OR_SUM, default=True),
        ),
        fixed={"trim_scope": "tensor", "vote": "weighted", "zero_vote": "positive"},
    ),
    KnownMethod(
        "breadcrumbs", "breadcrumbs", "required", has_weights=True,
        parameters=(LAMBDA, DENSITY, GAMMA, INT8_MASK, NO_RESCALE),
        fixed={"scope": "tensor", "mask_mode": "band", "elect_signs": False}, divides=True, has_outliers=True,
    ),
    KnownMethod(
        "breadcrumbs_ties", "breadcrumbs", "required", has_weights=True,
        parameters=(
            LAMBDA, DENSITY, GAMMA, INT8_MASK, NO_RESCALE, OneValue("normalize", default=False, reason=SUM_ONLY)
        ),
        fixed={"scope": "tensor", "mask_mode": "band", "elect_signs": True}, has_outliers=True,
    ),
    KnownMethod("slerp", "slerp", "start", parameters=(Renamed("t", "t", None),)),
    KnownMethod("passthrough", "passthrough", "optional"),  # its slices and scales are read by layers.py
)  # fmt: skip

BY_NAME: Mapping[str, KnownMethod] = {known.theirs: known for known in KNOWN_METHODS}
