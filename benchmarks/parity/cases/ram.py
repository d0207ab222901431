"""`ram` against other tools."""

from benchmarks.parity.case import Case

CASES = (
    Case("ram", "the defaults", "mergekit", "ram"),
    Case("ram", "threshold .02", "mergekit", "ram", {"change_threshold": 0.02}, {"epsilon": 0.02}),
    Case(
        "ram", "threshold .04, boost .1", "mergekit", "ramplus_tl",
        {"change_threshold": 0.04, "unique_boost": 0.1}, {"epsilon": 0.04},
    ),
    Case(
        "ram", "threshold .04, boost .5 to a ratio of 2", "mergekit", "ramplus_tl",
        {"change_threshold": 0.04, "unique_boost": 0.5, "max_overlap_ratio": 2.0},
        {"epsilon": 0.04, "r": 0.5, "alpha": 2.0},
    ),
)  # fmt: skip
