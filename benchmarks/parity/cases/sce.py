"""`sce` against other tools."""

from benchmarks.parity.case import SCALAR, SMALL, Case

AT_LEAST_ONE = "it selects nothing of a tensor too small to keep one entry; we keep one"

CASES = (
    Case("sce", "everything selected", "mergekit", "sce"),
    Case("sce", "density .5", "mergekit", "sce", {"density": 0.5}, {"select_topk": 0.5}, left_out=(SCALAR,)),
    Case("sce", "density .1", "mergekit", "sce", {"density": 0.1}, {"select_topk": 0.1}, left_out=(SCALAR, SMALL)),
    Case(
        "sce", "density .1, tensors of 1 and 3 entries too", "mergekit", "sce",
        {"density": 0.1}, {"select_topk": 0.1}, differs=AT_LEAST_ONE,
    ),
)  # fmt: skip
