"""`peru_fft` against other tools: fusion-bench's pruning of what a model has beyond another, here the merged one."""

from benchmarks.parity.case import Case

CASES = tuple(
    Case(
        "peru_fft", f"density .25, the model in one row, task {task}", "fusion-bench",
        "MagnitudeDiffPruningAlgorithm", {"density": 0.25}, {"prune_ratio": 0.75, "scaling_factor": 0.3}, task=task,
    )
    for task in (0, 1)
)  # fmt: skip
