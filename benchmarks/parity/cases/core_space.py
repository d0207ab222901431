"""`core_space` read by PEFT."""

from benchmarks.parity.case import LOADED, Case

CASES = (Case("core_space", "TIES inside", "peft", LOADED, weights=(1.0, 0.5)),)
