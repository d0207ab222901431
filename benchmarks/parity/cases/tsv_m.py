"""`tsv_m` against other tools."""

from benchmarks.parity.case import FLOAT32_SVD, UNEQUAL, Case

CALL = "TaskSingularVectorMerging"

CASES = (
    Case(
        "tsv_m", "λ .7", "fusion-bench", CALL, {"scaling_coefficient": 0.7, "dense_patterns": []}, {"alpha": 0.7},
        tolerance=FLOAT32_SVD,
    ),
    Case(
        "tsv_m", "weights .5, .3, .2", "fusion-bench", CALL,
        {"dense_patterns": []}, {"alpha": list(UNEQUAL)}, weights=UNEQUAL, tolerance=FLOAT32_SVD,
    ),
    Case(
        "tsv_m", "embeddings entry by entry (the default)", "fusion-bench", CALL,
        {}, {"exclude_keys": ["model__embed_tokens__weight"]},
        tolerance=FLOAT32_SVD,
    ),
)  # fmt: skip
