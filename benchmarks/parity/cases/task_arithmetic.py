"""`task_arithmetic` against other tools."""

from benchmarks.parity.case import Case

CASES = (
    Case("task_arithmetic", "λ .3", "mergekit", "task_arithmetic", {"scaling_coefficient": 0.3}, {"lambda": 0.3}),
    Case(
        "task_arithmetic", "λ 1, weights .5, -.3, .2", "mergekit", "task_arithmetic",
        {"scaling_coefficient": 1.0}, {"lambda": 1.0}, weights=(0.5, -0.3, 0.2),
    ),
    Case(
        "task_arithmetic", "λ .3", "fusion-bench", "TaskArithmeticAlgorithm",
        {"scaling_coefficient": 0.3}, {"scaling_factor": 0.3},
    ),
)  # fmt: skip
