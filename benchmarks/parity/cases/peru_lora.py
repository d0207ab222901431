"""`peru_lora` against other tools: on dense models it is what fusion-bench's compression of task vectors keeps."""

from benchmarks.parity.case import FLOAT32_SVD, Case

CASES = tuple(
    Case(
        "peru_lora", f"rank 4 of 16, task {task}", "fusion-bench", "compress_tv",
        {"rank": 4}, {"sv_reduction": 0.25}, task=task, tolerance=FLOAT32_SVD,
    )
    for task in (0, 1)
)  # fmt: skip
