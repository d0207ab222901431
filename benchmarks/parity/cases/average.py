"""`average` against other tools."""

from benchmarks.parity.case import UNEQUAL, Case

CASES = (
    Case("average", "equal weights", "mergekit", "linear"),
    Case("average", "weights .5, .3, .2", "mergekit", "linear", weights=UNEQUAL),
    Case(
        "average", "weights 2, -1, .5, not normalized", "mergekit", "linear",
        {"normalize": False}, {"normalize": False}, weights=(2.0, -1.0, 0.5),
    ),
    Case("average", "equal weights", "fusion-bench", "SimpleAverageAlgorithm"),
    Case(
        "average", "weights .5, .3, .2", "fusion-bench", "WeightedAverageAlgorithm",
        oracle_parameters={"normalize": True, "weights": list(UNEQUAL)}, weights=UNEQUAL,
    ),
)  # fmt: skip
