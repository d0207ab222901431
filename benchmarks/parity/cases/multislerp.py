"""`multislerp` against other tools."""

from benchmarks.parity.case import Case

CASES = (
    Case("multislerp", "equal weights", "mergekit", "multislerp"),
    Case("multislerp", "equal weights, no base", "mergekit", "multislerp", is_based=False),
    Case("multislerp", "weights .6, .3, .2", "mergekit", "multislerp", weights=(0.6, 0.3, 0.2)),
    Case(
        "multislerp", "weights .5, .3, .4, not normalized", "mergekit", "multislerp",
        {"normalize": False}, {"normalize_weights": False}, weights=(0.5, 0.3, 0.4),
    ),
)  # fmt: skip
