"""Methods of dense models on adapters: in the space of the updates against PEFT, and their results read by it."""

from benchmarks.parity.case import LOADED, Case

WEIGHTS = (0.7, -0.3)
STACKED = {"combination_type": "cat"}  # PEFT's exact sum

CASES = (
    *(
        Case(
            "task_arithmetic", f"adapters, space {space}", "peft", "add_weighted_adapter",
            {"adapter_space": space, "scaling_coefficient": 1.0}, STACKED, WEIGHTS,
        )
        for space in ("delta", "concat")
    ),
    *(
        Case(
            "task_arithmetic", f"adapters, space {space}, λ .5", "peft", LOADED,
            {"adapter_space": space, "scaling_coefficient": 0.5}, weights=WEIGHTS,
        )
        for space in ("concat", "factors")
    ),
    Case("average", "adapters, space concat", "peft", LOADED, {"adapter_space": "concat"}, weights=(1.0, 1.0)),
)  # fmt: skip
