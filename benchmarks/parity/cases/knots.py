"""`knots` read by PEFT."""

from benchmarks.parity.case import LOADED, Case

CASES = (Case("knots", "TIES inside", "peft", LOADED, weights=(1.0, 0.5)),)
