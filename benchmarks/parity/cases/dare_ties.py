"""`dare_ties` against other tools. Their random numbers come from another stream: compared where none are drawn."""

from benchmarks.parity.case import UNEQUAL, Case

ONE_MORE = "its trim keeps one entry more per model than the density says"

CASES = (
    Case(
        "dare_ties", "density 1 (nothing is drawn), weighted, sum", "mergekit", "dare_ties",
        {"density": 1.0, "rescale": "l1", "vote": "weighted", "reduce": "sum"}, {"density": 1.0}, weights=UNEQUAL,
    ),
    Case(
        "dare_ties", "density 1 (nothing is drawn), trim .2, sum, λ .5", "fusion-bench", "DareTiesMerging",
        {"density": 1.0, "trim_density": 0.2, "reduce": "sum", "zero_vote": "majority", "scaling_coefficient": 0.5},
        {
            "sparsity_ratio": 0.0, "only_on_linear_weights": False, "rescale": True, "scaling_factor": 0.5,
            "threshold": 20, "remove_keys": [], "merge_func": "sum",
        },
        differs=ONE_MORE,
    ),
)  # fmt: skip
