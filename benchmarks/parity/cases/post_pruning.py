"""`post_pruning` against other tools."""

from benchmarks.parity.case import Case

CASES = tuple(
    Case(
        "post_pruning", f"density .25, the model in one row, task {task}", "fusion-bench",
        "MagnitudeDiffPruningAlgorithm", {"density": 0.25}, {"prune_ratio": 0.75}, task=task,
    )
    for task in (0, 1)
)  # fmt: skip
