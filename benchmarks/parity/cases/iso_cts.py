"""`iso_cts` against other tools."""

from benchmarks.parity.case import FLOAT32_SVD, Case

CASES = (
    Case(
        "iso_cts", "λ 1.5, the default .8 common", "fusion-bench", "ISO_CTS_Merge",
        {"scaling_coefficient": 1.5, "dense_patterns": []}, {"scaling_factor": 1.5, "common_space_fraction": 0.8},
        tolerance=FLOAT32_SVD,
    ),
    Case(
        "iso_cts", ".4 common", "fusion-bench", "ISO_CTS_Merge",
        {"common_fraction": 0.4, "dense_patterns": []}, {"scaling_factor": 1.0, "common_space_fraction": 0.4},
        tolerance=FLOAT32_SVD,
    ),
)  # fmt: skip
