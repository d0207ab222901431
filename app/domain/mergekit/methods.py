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
BaseRole = Literal["required", "optional", "input", "start"]  # "input": one of the models; it is no base for us


@dataclass(frozen=True)
class Renamed:
    """A parameter that has another name here, or the same."""

    theirs: str
    ours: str
    default: JsonValue  # mergekit's; None: it must be given
    kind: Kind = "number"
    is_per_model: bool = False  # a model may have a value of its own


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
    default: bool | float
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
    at_density_below_one: Renamed | None = None  # a parameter that mergekit does not look at where density is 1
    has_vectors: bool = False  # two flags say what is a vector


LAMBDA = Renamed("lambda", "scaling_coefficient", 1.0)
DENSITY = Renamed("density", "density", 1.0, is_per_model=True)
GAMMA = Renamed("gamma", "outlier_fraction", 0.01, is_per_model=True)
EPSILON = Renamed("epsilon", "density_spread", 0.15, is_per_model=True)
RESCALE = Switched("rescale", "rescale", {True: "l1", False: "none"}, default=True)
FLATTEN = Ineffective("nuslerp_flatten", default=True)  # these two are read together
ROW_WISE = Ineffective("nuslerp_row_wise", default=False)
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
        fixed={"scope": "tensor", "mask_mode": "band", "elect_signs": False}, divides=True,
        at_density_below_one=GAMMA,
    ),
    KnownMethod(
        "breadcrumbs_ties", "breadcrumbs", "required", has_weights=True,
        parameters=(
            LAMBDA, DENSITY, GAMMA, INT8_MASK, NO_RESCALE, OneValue("normalize", default=False, reason=SUM_ONLY)
        ),
        fixed={"scope": "tensor", "mask_mode": "band", "elect_signs": True},
        at_density_below_one=GAMMA,
    ),
    KnownMethod(
        "dare_linear", "dare_linear", "required", has_weights=True,
        parameters=(LAMBDA, DENSITY, RESCALE, INT8_MASK), divides=True,
    ),
    KnownMethod(
        "dare_ties", "dare_ties", "required", has_weights=True,
        parameters=(
            LAMBDA, DENSITY, RESCALE, INT8_MASK, Switched("normalize", "reduce", MEAN_OR_SUM, default=False)
        ),
        fixed={"trim_density": 1.0, "trim_scope": "global", "vote": "weighted", "zero_vote": "positive"},
    ),
    KnownMethod(
        "della", "della", "required", has_weights=True,
        parameters=(
            LAMBDA, DENSITY, EPSILON, RESCALE, INT8_MASK,
            Switched("normalize", "reduce", MEAN_OR_SUM, default=True),
        ),
        fixed={"vote": "weighted"}, at_density_below_one=EPSILON,
    ),
    KnownMethod(
        "della_linear", "della_linear", "required", has_weights=True,
        parameters=(LAMBDA, DENSITY, EPSILON, RESCALE, INT8_MASK), divides=True, at_density_below_one=EPSILON,
    ),
    KnownMethod("slerp", "slerp", "start", parameters=(Renamed("t", "t", None),)),
    KnownMethod(
        "nuslerp", "nuslerp", "optional", has_weights=True, parameters=(FLATTEN, ROW_WISE), has_vectors=True
    ),
    KnownMethod(
        "multislerp", "multislerp", "optional", has_weights=True,
        parameters=(
            Renamed("normalize_weights", "normalize", default=True, kind="flag"),
            OneValue("eps", default=1e-8, reason="Amalgam needs no such guard", kind="number"),
        ),
    ),
    KnownMethod(
        "karcher", "karcher", "input",
        parameters=(
            Renamed("max_iter", "max_iterations", 10, kind="integer"), Renamed("tol", "tolerance", 1e-5)
        ),
    ),
    KnownMethod(
        "model_stock", "model_stock", "required",
        parameters=(Switched("filter_wise", "scope", {True: "row", False: "tensor"}, default=False),),
        fixed={"mean": "cosine", "clamp": False},
    ),
    KnownMethod(
        "sce", "sce", "required", parameters=(Renamed("select_topk", "density", 1.0), INT8_MASK),
        fixed={"variant": "mergekit"},
    ),
    KnownMethod("nearswap", "nearswap", "required", parameters=(Renamed("t", "max_change", None),)),
    KnownMethod("arcee_fusion", "arcee_fusion", "required", fixed={"interquartile_ranges": 1.5}),
    KnownMethod(
        "ram", "ram", "required", parameters=(Renamed("epsilon", "change_threshold", 1e-5),),
        fixed={"unique_boost": 0.0, "max_overlap_ratio": 0.2},
    ),
    KnownMethod(
        "ramplus_tl", "ram", "required",
        parameters=(
            Renamed("epsilon", "change_threshold", 1e-5), Renamed("r", "unique_boost", 0.1),
            Renamed("alpha", "max_overlap_ratio", 0.2),
        ),
    ),
    KnownMethod("passthrough", "passthrough", "optional"),  # its slices and scales are read by layers.py
)  # fmt: skip

BY_NAME: Mapping[str, KnownMethod] = {known.theirs: known for known in KNOWN_METHODS}
