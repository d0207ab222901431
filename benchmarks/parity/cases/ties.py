"""`ties` against other tools."""

from benchmarks.parity.case import UNEQUAL, Case

AS_MERGEKIT = {"trim_scope": "tensor", "vote": "weighted", "zero_vote": "positive"}
ONE_MORE = "it keeps one entry more per model than the density says (its k-th value counts from the other end)"
FLIPPED_BACK = "it divides by the signed weights, so a lone negated model comes back unnegated; we keep it negated"
OWN_DEFAULT = "its trim is per tensor and its votes are weighted; ours are global and unweighted, as in the paper"

CASES = (
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
)  # fmt: skip
