"""`expo` against other tools."""

from benchmarks.parity.case import Case

FACTOR = {"extrapolation_factor": 0.3}

CASES = (
    Case("expo", "one model", "fusion-bench", "ExPOAlgorithm", FACTOR, FACTOR, weights=(1.0,)),
    Case("expo", "three models", "fusion-bench", "ExPOAlgorithm", FACTOR, FACTOR),
)
