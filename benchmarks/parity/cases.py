"""What is compared: our methods where they should equal another tool's, and where the tools differ for a reason."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Values = Mapping[str, Any]  # parameters by name: of ours, or of the other tool


@dataclass(frozen=True)
class Case:
    """One merge, done by us and by another implementation on the same files."""

    method: str
    variant: str  # what is special about it, for the table
    oracle: Literal["mergekit", "fusion-bench"]
    call: str  # its name for the method, or its class
    parameters: Values = field(default_factory=dict)  # ours
    oracle_parameters: Values = field(default_factory=dict)
    weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    left_out: tuple[str, ...] = ()  # tensors that another case compares
    differs: str = ""  # why the results are not expected to be equal; empty: they are


SCALAR, SMALL = "encoder.scale", "encoder.norm.bias"  # 1 and 3 entries
UNEQUAL = (0.5, 0.3, 0.2)
AS_MERGEKIT = {"trim_scope": "tensor", "vote": "weighted", "zero_vote": "positive"}
ONE_MORE = "it keeps one entry more per model than the density says (its k-th value counts from the other end)"
NO_SMALL_TENSORS = "it zeroes the task vector of a tensor too small to keep one entry; we keep such a tensor whole"
FLIPPED_BACK = "it divides by the signed weights, so a lone negated model comes back unnegated; we keep it negated"
CLIPPED = "at density 1 it ignores the outliers; we drop them"
SHRUNK = "it drops fewer outliers when density and outliers exceed 1; we drop what was asked and keep the rest"
OWN_DEFAULT = "its trim is per tensor and its votes are weighted; ours are global and unweighted, as in the paper"

MERGEKIT = (
    Case("average", "equal weights", "mergekit", "linear"),
    Case("average", "weights .5, .3, .2", "mergekit", "linear", weights=UNEQUAL),
    Case(
        "average", "weights 2, -1, .5, not normalized", "mergekit", "linear",
        {"normalize": False}, {"normalize": False}, weights=(2.0, -1.0, 0.5),
    ),
    Case("task_arithmetic", "λ .3", "mergekit", "task_arithmetic", {"scaling_coefficient": 0.3}, {"lambda": 0.3}),
    Case(
        "task_arithmetic", "λ 1, weights .5, -.3, .2", "mergekit", "task_arithmetic",
        {"scaling_coefficient": 1.0}, {"lambda": 1.0}, weights=(0.5, -0.3, 0.2),
    ),
    Case(
        "ties", "per tensor, weighted, mean", "mergekit", "ties",
        {"density": 0.5, **AS_MERGEKIT}, {"density": 0.5}, weights=UNEQUAL,
    ),
    Case(
        "ties", "per tensor, weighted, mean, density .2, λ .7", "mergekit", "ties",
        {"density": 0.2, "scaling_coefficient": 0.7, **AS_MERGEKIT}, {"density": 0.2, "lambda": 0.7}, weights=UNEQUAL,
    ),
    Case(
        "ties", "per tensor, weighted, sum", "mergekit", "ties",
        {"density": 0.5, "reduce": "sum", **AS_MERGEKIT}, {"density": 0.5, "normalize": False}, weights=UNEQUAL,
    ),
    Case(
        "ties", "density 1", "mergekit", "ties", {"density": 1.0, **AS_MERGEKIT}, {"density": 1.0},
    ),
    Case(
        "ties", "weights 1, -1, .5", "mergekit", "ties",
        {"density": 0.5, **AS_MERGEKIT}, {"density": 0.5}, weights=(1.0, -1.0, 0.5), differs=FLIPPED_BACK,
    ),
    Case(
        "ties", "each tool's defaults, density .2", "mergekit", "ties",
        {"density": 0.2}, {"density": 0.2}, weights=UNEQUAL, differs=OWN_DEFAULT,
    ),
    Case(
        "breadcrumbs", "density .5, outliers .1, weighted", "mergekit", "breadcrumbs",
        {"density": 0.5, "outlier_fraction": 0.1, "scaling_coefficient": 0.4},
        {"density": 0.5, "gamma": 0.1, "lambda": 0.4}, weights=UNEQUAL, left_out=(SCALAR,),
    ),
    Case(
        "breadcrumbs", "density .15, outliers .01 (the defaults)", "mergekit", "breadcrumbs",
        {}, {"density": 0.15, "gamma": 0.01, "lambda": 0.3}, left_out=(SCALAR, SMALL),
    ),
    Case(
        "breadcrumbs", "the defaults, tensors of 1 and 3 entries too", "mergekit", "breadcrumbs",
        {}, {"density": 0.15, "gamma": 0.01, "lambda": 0.3}, differs=NO_SMALL_TENSORS,
    ),
    Case(
        "breadcrumbs", "signs elected", "mergekit", "breadcrumbs_ties",
        {"density": 0.5, "outlier_fraction": 0.1, "scaling_coefficient": 1.0, "elect_signs": True},
        {"density": 0.5, "gamma": 0.1}, weights=UNEQUAL, left_out=(SCALAR,),
    ),
    Case(
        "breadcrumbs", "density 1, no outliers", "mergekit", "breadcrumbs",
        {"density": 1.0, "outlier_fraction": 0.0, "scaling_coefficient": 0.4},
        {"density": 1.0, "gamma": 0.0, "lambda": 0.4},
    ),
    Case(
        "breadcrumbs", "density 1, outliers .1", "mergekit", "breadcrumbs",
        {"density": 1.0, "outlier_fraction": 0.1, "scaling_coefficient": 0.4},
        {"density": 1.0, "gamma": 0.1, "lambda": 0.4}, differs=CLIPPED,
    ),
    Case(
        "breadcrumbs", "density .95, outliers .1", "mergekit", "breadcrumbs",
        {"density": 0.95, "outlier_fraction": 0.1, "scaling_coefficient": 0.4},
        {"density": 0.95, "gamma": 0.1, "lambda": 0.4}, differs=SHRUNK,
    ),
    Case("slerp", "t .5", "mergekit", "slerp", {"t": 0.5}, {"t": 0.5}, weights=(1.0, 1.0)),
    Case("slerp", "t .2", "mergekit", "slerp", {"t": 0.2}, {"t": 0.2}, weights=(1.0, 1.0)),
)  # fmt: skip

FUSION_BENCH = (
    Case("average", "equal weights", "fusion-bench", "SimpleAverageAlgorithm"),
    Case(
        "average", "weights .5, .3, .2", "fusion-bench", "WeightedAverageAlgorithm",
        oracle_parameters={"normalize": True, "weights": list(UNEQUAL)}, weights=UNEQUAL,
    ),
    Case(
        "task_arithmetic", "λ .3", "fusion-bench", "TaskArithmeticAlgorithm",
        {"scaling_coefficient": 0.3}, {"scaling_factor": 0.3},
    ),
    *(
        Case(
            "ties", f"global, {reduce}, one entry more", "fusion-bench", "TiesMergingAlgorithm",
            {"density": "one more than 0.2", "reduce": reduce, "scaling_coefficient": 0.3},
            {"scaling_factor": 0.3, "threshold": 20, "remove_keys": [], "merge_func": reduce},
        )
        for reduce in ("mean", "sum", "max")
    ),
    Case(
        "ties", "global, mean, density .2", "fusion-bench", "TiesMergingAlgorithm",
        {"density": 0.2, "scaling_coefficient": 0.3},
        {"scaling_factor": 0.3, "threshold": 20, "remove_keys": [], "merge_func": "mean"}, differs=ONE_MORE,
    ),
    Case("slerp", "t .5", "fusion-bench", "SlerpMergeAlgorithm", {"t": 0.5}, {"t": 0.5}, weights=(1.0, 1.0)),
    Case("slerp", "t .2", "fusion-bench", "SlerpMergeAlgorithm", {"t": 0.2}, {"t": 0.2}, weights=(1.0, 1.0)),
)  # fmt: skip
