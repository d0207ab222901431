"""`nearswap` against other tools."""

from benchmarks.parity.case import Case

ONE = (1.0,)

CASES = (
    Case("nearswap", "step .01", "mergekit", "nearswap", {"max_change": 0.01}, {"t": 0.01}, weights=ONE),
    Case("nearswap", "the defaults", "mergekit", "nearswap", {}, {"t": 0.0001}, weights=ONE),
)
