"""`linearized_lora` against fusion-bench, which runs the expansion: outputs are compared; and read by PEFT."""

from benchmarks.parity.case import LOADED, Case

CALL = "LinearizedModelWraper"
AVERAGE = {"merge": {"method": "average", "parameters": {}}}
ARITHMETIC = {"merge": {"method": "task_arithmetic", "parameters": {"scaling_coefficient": 0.7}}}
TWO = (1.0, 1.0)

CASES = (
    Case(
        "linearized_lora", "average, run", "fusion-bench", CALL,
        AVERAGE, {"algorithm": "SimpleAverageAlgorithm"}, TWO, inputs="adapters",
    ),
    Case(
        "linearized_lora", "task arithmetic, λ .7, run", "fusion-bench", CALL,
        ARITHMETIC, {"algorithm": "TaskArithmeticAlgorithm", "scaling_factor": 0.7}, TWO, inputs="adapters",
    ),
    Case("linearized_lora", "average, folded", "peft", LOADED, AVERAGE, weights=TWO),
    Case("linearized_lora", "dense_space, folded", "peft", LOADED, {"space": "dense_space"}, weights=TWO),
)  # fmt: skip
