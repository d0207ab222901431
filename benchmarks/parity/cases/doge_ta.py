"""`doge_ta` against other tools."""

from benchmarks.parity.case import FLOAT32_SVD, Case

THEIRS = {"subspace": 6, "K": 30, "lamda": 0.07}
ONE_MORE = "it keeps one entry more per model than the density says (its k-th value counts from the other end)"

CASES = (
    Case(
        "doge_ta", "density .3, one entry more", "fusion-bench", "DOGE_TA_Algorithm",
        {"density": 77 / 256}, THEIRS, tolerance=FLOAT32_SVD,
    ),
    Case("doge_ta", "density .3", "fusion-bench", "DOGE_TA_Algorithm", {}, THEIRS, differs=ONE_MORE),
)  # fmt: skip
