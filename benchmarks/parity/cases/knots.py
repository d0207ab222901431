"""`knots` against fusion-bench, on the dense models that the adapters make; and read by PEFT."""

from benchmarks.parity.case import LOADED, Case

TURNED = {"turned": ["embed.weight", "c_fc.weight"]}  # stored as [in, out]
SUMS = {"method": "task_arithmetic", "parameters": {"scaling_coefficient": 1.0}}
N_COORDINATES = 8 * 16 + 8 * 16 + 4 * 18 + 8 * 40 + 5 * 48  # of two adapters of rank 4: dense, c_fc, conv, embed, head
TIES = {"method": "ties", "parameters": {"density": (int(0.2 * N_COORDINATES) + 1) / N_COORDINATES}}
TWO = (1.0, 1.0)

CASES = (
    Case(
        "knots", "sums inside", "fusion-bench", "subspace_alignment", {"merge": SUMS}, TURNED,
        weights=TWO, inputs="adapters",
    ),
    Case(
        "knots", "TIES inside, one entry more", "fusion-bench", "subspace_alignment",
        {"merge": TIES}, {**TURNED, "ties_threshold": 20}, weights=TWO, inputs="adapters",
    ),
    Case("knots", "TIES inside", "peft", LOADED, weights=(1.0, 0.5)),
)  # fmt: skip
