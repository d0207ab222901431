"""`emr` against other tools."""

from benchmarks.parity.case import Case

GLOBAL = "its scales are sums of the tensors' means; ours, as in the paper, sum over the whole model"

CASES = (
    *(
        Case("emr", f"task {task}, tensor means", "fusion-bench", "emr_merge", {"rescale": "tensor_mean"}, task=task)
        for task in (0, 1, 2)
    ),
    Case("emr", "each tool's defaults, task 0", "fusion-bench", "emr_merge", {}, task=0, differs=GLOBAL),
)
