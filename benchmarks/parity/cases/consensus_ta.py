"""`consensus_ta` against other tools."""

from benchmarks.parity.case import Case

CALL = "construct_consensus_mask"

CASES = (
    Case(
        "consensus_ta", "two tasks (the defaults)", "fusion-bench", CALL,
        {}, {"tall_mask_lambda": 0.4, "prun_thre_k": 2},
    ),
    Case(
        "consensus_ta", "three tasks, threshold .2", "fusion-bench", CALL,
        {"min_tasks": 3, "mask_threshold": 0.2}, {"tall_mask_lambda": 0.2, "prun_thre_k": 3},
    ),
)  # fmt: skip
