"""`arcee_fusion` against other tools."""

from benchmarks.parity.case import Case

CASES = (Case("arcee_fusion", "the defaults", "mergekit", "arcee_fusion", weights=(1.0,)),)
