"""`opcm` against other tools."""

from benchmarks.parity.case import FLOAT32_SVD, Case

THEIRS = {"shuffle_order": False, "save_on_every_step": False}

CASES = (
    Case(
        "opcm", "half protected", "fusion-bench", "OPCM",
        {"dense_patterns": []}, {"alpha": 0.5, **THEIRS}, tolerance=FLOAT32_SVD,
    ),
    Case(
        "opcm", ".2 protected", "fusion-bench", "OPCM",
        {"protected_fraction": 0.2, "dense_patterns": []}, {"alpha": 0.2, **THEIRS}, tolerance=FLOAT32_SVD,
    ),
)  # fmt: skip
