"""`consensus_ties` against other tools, whose TIES keeps one entry more per model than the density says."""

from benchmarks.parity.case import Case

CASES = (
    Case(
        "consensus_ties", "two tasks, one entry more", "fusion-bench", "construct_consensus_mask",
        {"density": "one more than 0.2"}, {"tall_mask_lambda": 0.4, "prun_thre_k": 2, "ties_threshold": 20},
    ),
)  # fmt: skip
