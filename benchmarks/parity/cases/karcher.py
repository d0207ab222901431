"""`karcher` against other tools."""

from benchmarks.parity.case import Case

CASES = (
    Case("karcher", "the defaults", "mergekit", "karcher", is_based=False),
    Case("karcher", "two models", "mergekit", "karcher", weights=(1.0, 1.0), is_based=False),
    Case(
        "karcher", "one step", "mergekit", "karcher", {"max_iterations": 1}, {"max_iter": 1}, is_based=False,
    ),
)  # fmt: skip
