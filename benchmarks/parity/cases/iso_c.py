"""`iso_c` against other tools."""

from benchmarks.parity.case import FLOAT32_SVD, Case

CASES = (
    Case(
        "iso_c", "λ 1.5", "fusion-bench", "ISO_C_Merge",
        {"scaling_coefficient": 1.5, "dense_patterns": []}, {"scaling_factor": 1.5}, tolerance=FLOAT32_SVD,
    ),
    Case(
        "iso_c", "embeddings entry by entry (the default)", "fusion-bench", "ISO_C_Merge",
        {}, {"scaling_factor": 1.0, "exclude_keys": ["model__embed_tokens__weight"]},
        tolerance=FLOAT32_SVD,
    ),
)  # fmt: skip
