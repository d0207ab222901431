"""`magmax` against other tools."""

from benchmarks.parity.case import Case

CASES = (
    Case("magmax", "λ .5", "fusion-bench", "MagMaxAlgorithm"),
    Case(
        "magmax", "λ 1.2", "fusion-bench", "MagMaxAlgorithm", {"scaling_coefficient": 1.2}, {"scaling_factor": 1.2},
    ),
)  # fmt: skip
