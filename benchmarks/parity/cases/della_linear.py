"""`della_linear` against mergekit, whose random numbers come from another stream: compared where none are drawn."""

from benchmarks.parity.case import UNEQUAL, Case

CASES = (
    Case(
        "della_linear", "density 1 (nothing is drawn), weighted", "mergekit", "della_linear",
        {"density": 1.0, "density_spread": 0.0, "rescale": "l1"}, {"density": 1.0}, weights=UNEQUAL,
    ),
)  # fmt: skip
