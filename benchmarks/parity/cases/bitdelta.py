"""`bitdelta` against other tools: signs and scales, before the distillation, which needs data."""

from benchmarks.parity.case import Case

CASES = tuple(Case("bitdelta", f"matrices, task {task}", "fusion-bench", "BinaryDiff", task=task) for task in (0, 1))
