"""`tsv_c` against other tools."""

from benchmarks.parity.case import FLOAT32_SVD, Case

CASES = (
    *(
        Case(
            "tsv_c", f"task {task}", "fusion-bench", "compress_tv", {}, {"sv_reduction": 1 / 3}, task=task,
            tolerance=FLOAT32_SVD,
        )
        for task in (0, 1, 2)
    ),
    Case(
        "tsv_c", "a quarter of the directions, task 0", "fusion-bench", "compress_tv",
        {"rank_fraction": 0.25}, {"sv_reduction": 0.25}, task=0, tolerance=FLOAT32_SVD,
    ),
)  # fmt: skip
