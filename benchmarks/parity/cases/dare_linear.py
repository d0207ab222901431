"""`dare_linear` against other tools. Their random numbers come from another stream: compared where none are drawn."""

from benchmarks.parity.case import UNEQUAL, Case

CASES = (
    Case(
        "dare_linear", "density 1 (nothing is drawn), weighted", "mergekit", "dare_linear",
        {"density": 1.0, "rescale": "l1"}, {"density": 1.0}, weights=UNEQUAL,
    ),
    Case(
        "dare_linear", "density 1 (nothing is drawn), λ .3", "fusion-bench", "DareTaskArithmetic",
        {"density": 1.0, "scaling_coefficient": 0.3},
        {"scaling_factor": 0.3, "sparsity_ratio": 0.0, "only_on_linear_weights": False, "rescale": True},
    ),
)  # fmt: skip
